"""Transfers can be added, and that is all: triggers refuse UPDATE, DELETE and TRUNCATE.

A row trigger does not see TRUNCATE, so a statement trigger refuses that. The role the application
connects as does not own the table, so it cannot take the triggers away.
"""

from django.db import migrations

FORWARD = """
CREATE FUNCTION billing_refuse_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'transfers are append-only: % is refused', TG_OP
        USING ERRCODE = 'restrict_violation';
END $$;
CREATE TRIGGER transfers_are_never_changed
    BEFORE UPDATE OR DELETE ON billing_transfer
    FOR EACH ROW EXECUTE FUNCTION billing_refuse_change();
CREATE TRIGGER transfers_are_never_truncated
    BEFORE TRUNCATE ON billing_transfer
    FOR EACH STATEMENT EXECUTE FUNCTION billing_refuse_change();
"""
BACKWARD = """
DROP TRIGGER transfers_are_never_changed ON billing_transfer;
DROP TRIGGER transfers_are_never_truncated ON billing_transfer;
DROP FUNCTION billing_refuse_change();
"""


class Migration(migrations.Migration):
    dependencies = [("billing", "0001_ledger_holds_and_prices")]
    operations = [migrations.RunSQL(FORWARD, BACKWARD)]
