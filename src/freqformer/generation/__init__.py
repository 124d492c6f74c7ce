"""Videos from pipelines of diffusers with frequency attention, compared with those of dense
attention."""
