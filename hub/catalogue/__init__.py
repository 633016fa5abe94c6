"""The catalogue: what the hub knows, in SQLite or MariaDB. The one door to SQLAlchemy.

`engine` opens it and gives sessions; one module per noun holds the queries, functions that take a session first and
return frozen dataclasses. Errors are those of `shared.errors`; times are handed in and always have a time zone.
"""
