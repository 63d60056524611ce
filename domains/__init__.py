"""Domain adapters, one module or package per kind of data, imported as ``jitkit.domains``."""

if __name__ != "jitkit.domains":
    raise ImportError("import jitkit.domains, not domains: the name on disk is not a package")
