"""Operations of the attention pipeline: prologue, block-sparse attention, merge. Each has a
reference beside it."""
