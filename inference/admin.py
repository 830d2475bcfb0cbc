"""Jobs and workers in the admin; datasets are in `admin_datasets`, models in `admin_models`."""

import json
from typing import Any

from django.contrib import admin
from django.db.models import QuerySet
from django.http import HttpRequest
from django.utils.html import format_html, format_html_join
from django.utils.safestring import SafeString

from accounts.models import User
from billing.prices import readable_tokens
from inference import (
    admin_datasets,  # noqa: F401 - registers its pages
    admin_models,  # noqa: F401
    selectors,
    services,
    submission,
)
from inference.admin_comparison import ComparisonPages
from inference.models import (
    Job,
    JobFile,
    WorkerHeartbeat,
    WorkUnit,
    progress_percent,
)
from odproject.core.admin import (
    ObjectAction,
    ReadOnlyAdmin,
    ReasonForm,
    badge,
    list_link,
    object_link,
)

ERROR_LETTERS_SHOWN = 60
JOB_TONES = {"Pending": "odd", "Running": "busy", "Completed": "good", "Failed": "bad"}
UNIT_TONES = {"pending": "odd", "running": "busy", "completed": "good", "failed": "bad"}


# -- jobs ----------------------------------------------------------------------------------------


def _abort(actor: User, job: Job, answers: dict[str, Any]) -> str:
    services.abort_job(job_id=job.pk, reason=f"Aborted by an administrator: {answers['reason']}")
    return f"Job {job.pk} was aborted: {answers['reason']}"


def _run_again(actor: User, job: Job, answers: dict[str, Any]) -> str:
    again = submission.rerun_job(job_id=job.pk)
    quoted = readable_tokens(again.quoted_hundredths)
    return (
        f"Job {again.pk} runs job {job.pk} again; {quoted} tokens of {job.user} are held for it: "
        f"{answers['reason']}"
    )


class AbortForm(ReasonForm):
    """Why; the owner reads it."""

    readers = "The owner of the job reads this."


class RunAgainForm(ReasonForm):
    """Why somebody else's tokens are spent; kept in the history of the job."""

    readers = "Kept in the history of the job."


JOB_ACTIONS = (
    ObjectAction[Job](
        name="abort",
        title="Abort the job",
        permission="inference.abort_job",
        form_class=AbortForm,
        explain=lambda job: (
            f"Job {job.pk} of {job.user} ends now. What it has finished is charged "
            "and stays readable, the rest of what is held goes back."
        ),
        act=_abort,
        is_fitting=lambda job: job.state in Job.UNFINISHED,
        is_dangerous=True,
    ),
    ObjectAction[Job](
        name="run-again",
        title="Run the job again",
        permission="inference.rerun_job",
        form_class=RunAgainForm,
        explain=lambda job: (
            f"A new job on the files of job {job.pk}, with the same model version, "
            f"at the prices of now. {job.user} pays for it; job {job.pk} stays as it is."
        ),
        act=_run_again,
        is_fitting=lambda job: job.state not in Job.UNFINISHED,
    ),
)


@admin.register(JobFile)
class JobFileAdmin(ReadOnlyAdmin[JobFile]):
    """The files of jobs and what became of each; the pages of jobs lead here."""

    list_display = (
        "job",
        "position",
        "file_name",
        "coloured_state",
        "progress",
        "cost",
        "error",
    )
    list_filter = ("state",)
    search_fields = ("=job__id", "media_file__name")
    search_help_text = "Search by a job's number or a file"
    ordering = ("-job_id", "position")
    list_select_related = ("job", "media_file")
    fields = (*list_display, "error_code", "warning")

    def get_queryset(self, request: HttpRequest) -> QuerySet[JobFile]:
        """Files and how many of their frames are done."""
        return selectors.files_with_frames_done(super().get_queryset(request))

    def get_model_perms(self, request: HttpRequest) -> dict[str, bool]:
        """Not on the front page: the pages of jobs lead here."""
        return {}

    @admin.display(description="File", ordering="media_file__name")
    def file_name(self, file: JobFile) -> str:
        """As the user calls it."""
        return file.media_file.name

    @admin.display(description="State", ordering="state")
    def coloured_state(self, file: JobFile) -> SafeString:
        """The state in its colour."""
        return badge(file.state, UNIT_TONES.get(file.state, ""))

    @admin.display(description="Frames done")
    def progress(self, file: JobFile) -> str:
        """Frames done of all frames."""
        return f"{file.frames_done:,} of {file.frame_count:,}"  # type: ignore[attr-defined]

    @admin.display(description="Done so far costs (tokens)")
    def cost(self, file: JobFile) -> str:
        """The price of the frames that are done."""
        frames_done = file.frames_done  # type: ignore[attr-defined]
        return readable_tokens(frames_done * file.frame_price_hundredths)

    @admin.display
    def warning(self, file: JobFile) -> str:
        """What is wrong with the file although it was accepted."""
        return file.media_file.warning or "-"


@admin.register(WorkUnit)
class WorkUnitAdmin(ReadOnlyAdmin[WorkUnit]):
    """The pieces in which jobs are worked on, and which worker has each."""

    list_display = (
        "job",
        "position",
        "kind",
        "coloured_state",
        "slice",
        "tries",
        "worker_name",
        "lease_expires_at",
    )
    list_filter = ("state", "kind")
    search_fields = ("=job__id", "worker_name")
    search_help_text = "Search by a job's number or a worker"
    ordering = ("-job_id", "position", "pk")
    list_select_related = ("job",)
    fields = list_display

    def get_queryset(self, request: HttpRequest) -> QuerySet[WorkUnit]:
        """Units with the parts of the files that they look at."""
        return super().get_queryset(request).prefetch_related("parts__job_file__media_file")

    def get_model_perms(self, request: HttpRequest) -> dict[str, bool]:
        """Not on the front page: the pages of jobs lead here."""
        return {}

    @admin.display(description="State", ordering="state")
    def coloured_state(self, unit: WorkUnit) -> SafeString:
        """The state in its colour."""
        return badge(unit.state, UNIT_TONES.get(unit.state, ""))

    @admin.display(description="Looks at")
    def slice(self, unit: WorkUnit) -> str:
        """Its images, its range of a video, or the video that it finishes."""
        parts = list(unit.parts.all())
        name = parts[0].job_file.media_file.name if parts else "-"
        if unit.kind == WorkUnit.Kind.FRAMES:
            part = parts[0]
            return f"{name}, frames {part.first_frame_index:,} to {part.end_frame_index - 1:,}"
        return name if len(parts) < 2 else f"{name} and {len(parts) - 1} more"


@admin.register(Job)
class JobAdmin(ComparisonPages, ReadOnlyAdmin[Job]):
    """Jobs with state, progress, cost and error, to abort or to run again."""

    object_actions = JOB_ACTIONS
    list_display = (
        "id",
        "owner",
        "dataset_name",
        "model_version",
        "coloured_state",
        "progress",
        "quoted",
        "charged",
        "short_error",
        "created_at",
    )
    list_filter = ("state", "model_version")
    search_fields = ("=id", "user__email", "dataset__name")
    search_help_text = "Search by number, by the owner's e-mail address or by dataset"
    date_hierarchy = "created_at"
    ordering = ("-pk",)
    list_select_related = ("user", "dataset", "model_version")

    def get_queryset(self, request: HttpRequest) -> QuerySet[Job]:
        """Jobs and how many of their frames are done."""
        return selectors.with_frames_done(super().get_queryset(request))

    def get_fieldsets(self, request: HttpRequest, obj: Job | None = None) -> Any:
        """What there is to know, and the ways on."""
        owner = "owner_page" if request.user.has_perm("accounts.view_user") else "owner"
        may_see_datasets = request.user.has_perm("datasets.view_dataset")
        dataset = "dataset_page" if may_see_datasets else "dataset_name"
        what = (owner, dataset, "model_version", "again", "weights", "chosen")
        times = ("created_at", "deadline_at", "started_at", "finished_at")
        ways = ["files", "units", "comparisons"]
        if request.user.has_perm("billing.view_transfer"):
            ways.append("ledger")
        return [
            (None, {"fields": ("coloured_state", "progress", "quoted", "charged", "error")}),
            ("What", {"fields": what}),
            ("When", {"fields": times}),
            ("More", {"fields": ways}),
        ]

    @admin.display(ordering="user__email")
    def owner(self, job: Job) -> str:
        """Who pays for it."""
        return job.user.email

    @admin.display(description="Owner")
    def owner_page(self, job: Job) -> SafeString:
        """Who pays for it, and the way there."""
        return object_link("accounts_user", job.user_id, job.user.email)

    @admin.display(description="Dataset")
    def dataset_page(self, job: Job) -> SafeString:
        """What it looks at, and the way there."""
        return object_link("datasets_dataset", job.dataset_id, job.dataset.name)

    @admin.display(description="Dataset", ordering="dataset__name")
    def dataset_name(self, job: Job) -> str:
        """What it looks at."""
        return job.dataset.name

    @admin.display(description="State", ordering="state")
    def coloured_state(self, job: Job) -> SafeString:
        """The state in its colour."""
        return badge(job.state, JOB_TONES.get(job.state, ""))

    @admin.display
    def progress(self, job: Job) -> SafeString:
        """Percent of the frames done."""
        done = job.frames_done  # type: ignore[attr-defined]
        percent = progress_percent(frames_done=done, frame_count=job.frame_count)
        return format_html(
            '<span class="od-progress"><progress max="100" value="{}"></progress> {}%</span>',
            percent,
            f"{percent:g}",
        )

    @admin.display(description="Quoted", ordering="quoted_hundredths")
    def quoted(self, job: Job) -> str:
        """Tokens quoted."""
        return readable_tokens(job.quoted_hundredths)

    @admin.display(description="Charged", ordering="charged_hundredths")
    def charged(self, job: Job) -> str:
        """Tokens charged."""
        return "-" if job.charged_hundredths is None else readable_tokens(job.charged_hundredths)

    @admin.display(description="Error", ordering="error")
    def short_error(self, job: Job) -> str:
        """The beginning of why it failed or was aborted."""
        if len(job.error) <= ERROR_LETTERS_SHOWN:
            return job.error or "-"
        return f"{job.error[: ERROR_LETTERS_SHOWN - 1]}…"

    @admin.display(description="Runs again")
    def again(self, job: Job) -> SafeString | str:
        """The job whose files this one looks at again."""
        if job.rerun_of_id is None:
            return "-"
        return object_link("inference_job", job.rerun_of_id, f"job {job.rerun_of_id}")

    @admin.display(description="Weights (SHA-256)")
    def weights(self, job: Job) -> str:
        """Which weights it ran on."""
        return job.weights_sha256 or "-"

    @admin.display(description="Options")
    def chosen(self, job: Job) -> SafeString:
        """What it was told to do, option by option."""
        rows = ((name, json.dumps(value)) for name, value in job.options.items())
        return format_html_join(SafeString("<br>"), "{} = {}", rows) or format_html("-")

    @admin.display
    def files(self, job: Job) -> SafeString:
        """How many files are in which state, and the way to them."""
        counts = selectors.file_counts(job=job)
        told = ", ".join(f"{count:,} {state}" for state, count in counts.items())
        return list_link("inference_jobfile", told or "none", job=job.pk)

    @admin.display(description="Work units")
    def units(self, job: Job) -> SafeString:
        """The way to the pieces in which it is worked on."""
        return list_link("inference_workunit", f"Work units of job {job.pk}", job=job.pk)

    @admin.display
    def ledger(self, job: Job) -> SafeString:
        """The way to the job's movements of tokens."""
        return list_link("billing_transfer", f"Movements of job {job.pk}", job_id=job.pk)


# -- workers -------------------------------------------------------------------------------------


@admin.register(WorkerHeartbeat)
class WorkerHeartbeatAdmin(ReadOnlyAdmin[WorkerHeartbeat]):
    """Workers and when they were last heard of."""

    list_display = ("name", "status", "versions", "device", "last_seen_at")
    ordering = ("-last_seen_at",)
    fields = list_display

    def get_queryset(self, request: HttpRequest) -> QuerySet[WorkerHeartbeat]:
        """Workers, and whether each was heard of lately."""
        return selectors.with_liveness(super().get_queryset(request))

    @admin.display
    def status(self, worker: WorkerHeartbeat) -> SafeString:
        """Whether it was heard of a moment ago, with a model loaded."""
        if not worker.is_alive:  # type: ignore[attr-defined]
            return badge("silent", "bad")
        return badge("ready", "good") if worker.loaded_weights else badge("loading", "odd")

    @admin.display(description="Loaded versions")
    def versions(self, worker: WorkerHeartbeat) -> str:
        """Models in its memory."""
        return ", ".join(selectors.version_names(weights=worker.loaded_weights)) or "-"
