"""What tests of Penstock, and of executors and stores written elsewhere, stand on."""
