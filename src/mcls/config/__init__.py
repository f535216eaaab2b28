"""The seam between YAML and objects. Below it nobody has seen a configuration; Hydra and OmegaConf live here alone.

`compose` turns a command line into plain dictionaries, `schema` checks every value in them against what the YAML files
say of it, and `build` turns a dictionary with a `_target_` into the object that it names.
"""
