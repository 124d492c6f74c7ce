"""Old home of a run's sessions, which were called parts: `freqformer.training.provenance`."""

from freqformer._renamed import moved_names

__getattr__ = moved_names(
    __name__,
    {
        "COMMIT_VARIABLE": "freqformer.training.provenance.COMMIT_VARIABLE",
        "TRAIN_FILE": "freqformer.training.provenance.TRAIN_FILE",
        "PARTS_FILE": "freqformer.training.provenance.SESSIONS_FILE",
        "Part": "freqformer.training.provenance.Session",
        "read_parts": "freqformer.training.provenance.read_sessions",
        "write_parts": "freqformer.training.provenance.write_sessions",
    },
)
