"""One run: request, loading, samples, preparation, pass loop, verification, report."""
