"""Long work on disk: files, folders that resume, threads, progress. Knows no models."""
