"""The YAML configuration of mcls, shipped as the package `mcls.configs`."""
