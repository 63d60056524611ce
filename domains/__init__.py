"""Adapters: one file for each kind of data. Their import name is ``jitkit.domains``."""

if __name__ != "jitkit.domains":
    raise ImportError("import jitkit.domains, not domains: the name on disk is not a package")
