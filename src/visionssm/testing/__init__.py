"""What the library's own tests stand on, public so that users can test their own kernels and models with it."""
