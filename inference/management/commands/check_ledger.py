"""Check every invariant of the ledger, over every row."""

from typing import Any

from django.core.management.base import BaseCommand, CommandError

from billing.selectors import INVARIANTS, ledger_breaches
from datasets.selectors import CHARGE_INVARIANT, charge_breaches
from inference.selectors import SETTLEMENT_INVARIANT, settlement_breaches


class Command(BaseCommand):
    """Prints a line for each invariant; exits with 1 when one is broken."""

    help = "Check that balances equal transfers, all sums to zero and each job is settled once."

    def handle(self, *args: Any, **options: Any) -> None:
        """Ask the database for rows that break an invariant."""
        found = ledger_breaches() + charge_breaches() + settlement_breaches()
        breaches = {one.invariant: one.rows for one in found}
        for invariant in [*INVARIANTS, CHARGE_INVARIANT, SETTLEMENT_INVARIANT]:
            rows = breaches.get(invariant, [])
            self.stdout.write(f"{'BROKEN' if rows else 'holds '}  {invariant}")
            for row in rows[:20]:
                self.stdout.write(f"        {row}")
        if breaches:
            raise CommandError(f"{len(breaches)} invariants are broken.")
