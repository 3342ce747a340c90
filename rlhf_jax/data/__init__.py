"""From files to batches: readers, adapters, records (`schema`), templates and tokenizers, `encode`, `batches`."""
