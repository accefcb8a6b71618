"""The REST API on aiohttp: the reference's control plane, for the daemon's own port or socket (contract.md section 5).

`server.py` puts it together; one module per resource holds its handlers and its `routes`. Handlers parse, call a
port or a pure rule, and render: they decide nothing and never touch a process or a table themselves.
"""
