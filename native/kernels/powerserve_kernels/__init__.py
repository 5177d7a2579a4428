"""PowerServe's kernels for this platform: the library beside this file, which PowerServe loads."""
