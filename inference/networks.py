"""The networks that a worker has in memory."""

import logging
from collections import OrderedDict
from collections.abc import Callable

from django.conf import settings

from inference.models import Job
from inference.pipeline.detector import YoloDetector
from inference.pipeline.network import Network, fast_precisions, load_network, usable_device
from inference.pipeline.options import DetectionOptions, Precision
from inference.weights_store import local_weights

logger = logging.getLogger(__name__)


class Detectors:
    """Networks by the digest of their weights and precision; loaded on first use.

    Jobs of different options share them. Only so many stay in memory as the settings allow, and
    the idlest one goes first, so that a worker does not grow with the number of versions that
    were ever used.
    """

    def __init__(self, *, load: Callable[..., Network] = load_network) -> None:
        self._load_network = load
        self._networks: OrderedDict[tuple[str, str], Network] = OrderedDict()

    def for_job(self, job: Job) -> YoloDetector:
        """A detector as the job wants it; raises whatever loading its weights raises.

        Raises OptionsError for classes that the model does not know.
        """
        options = DetectionOptions.parse(job.options)
        network = self.load(job.weights_sha256, precision=options.precision)
        return YoloDetector(network, options)

    def load(self, sha256: str, *, precision: Precision = "auto") -> Network:
        """The network with these weights; raises WeightsError when they cannot be had."""
        key = (sha256, precision)
        if key in self._networks:
            self._networks.move_to_end(key)
            return self._networks[key]
        weights = local_weights(sha256)
        while len(self._networks) >= max(1, settings.NETWORKS_IN_MEMORY):
            (dropped, _), _ = self._networks.popitem(last=False)
            logger.info("Dropped %s", dropped[:12])
        network = self._load_network(
            weights,
            precision=precision,
            runtime=settings.NETWORK_RUNTIME,
            # Only the processor computes in int8, whatever the others do.
            device=None if precision == "int8" else settings.NETWORK_DEVICE or None,
            threads=settings.TORCH_THREADS or None,
            sha256=sha256,
        )
        side = settings.NETWORK_IMAGE_SIZE
        network.tune((side, side), batch_size=settings.NETWORK_BATCH)
        about = (sha256[:12], network.device, network.runtime, network.precision)
        logger.info("Loaded %s (%s, %s, %s)", *about)
        self._networks[key] = network
        return network

    @staticmethod
    def check_device() -> None:
        """Raise DeviceUnavailableError when the settings name a device that is not there.

        Without a name the processor takes the place of a missing card, at a tenth of its speed.
        """
        if settings.NETWORK_DEVICE:
            usable_device(settings.NETWORK_DEVICE)

    @property
    def loaded_weights(self) -> list[str]:
        """The digests of the weights in memory."""
        return sorted({sha256 for sha256, _ in list(self._networks)})

    @property
    def device(self) -> str:
        """Where the networks run, empty while none is loaded."""
        return next((network.device for network in list(self._networks.values())), "")

    @property
    def precisions(self) -> tuple[str, ...]:
        """In which the networks run at full speed here."""
        return fast_precisions()
