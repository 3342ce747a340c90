"""From files to batches.

readers (files -> rows), adapters (rows -> records of `schema`), `sources` (a string names both), `clean` and `privacy`, `mixtures` (several
sources, licences, a card), tokens (records -> token ids), batching (token ids -> batches). `prepared` and `erasure` are about what is kept.
"""
