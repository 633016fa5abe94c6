"""Revisions of the catalogue's tables: one line for SQLite and MariaDB, run by Alembic."""
