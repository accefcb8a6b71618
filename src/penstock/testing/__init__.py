"""What tests need and other projects may use: fakes that keep a port's contract, and the suites that prove it.

Imported by tests and by nothing else; must never import an adapter: a suite is given the thing that it examines.
"""
