"""Where rows and events live on disk: one module per kind of database behind the Store port (design section 6).

Chosen by wiring; nobody else imports from here. SQL stands in `sql/` and `migrations/`, never in Python.
"""
