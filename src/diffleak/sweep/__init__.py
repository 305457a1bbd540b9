"""`diffleak audit` over the checkpoints of a training: which of them may be released. One ordinary run folder each, and a page on all."""
