"""Old home of `Trainer`, which was called `TrainingRun`: `freqformer.training.trainer`."""

from freqformer._renamed import moved_names

__getattr__ = moved_names(
    __name__,
    {
        "TrainingRun": "freqformer.training.trainer.Trainer",
        "StepReport": "freqformer.training.report.StepReport",
        "TrainingError": "freqformer.training.report.TrainingError",
        "clip_source": "freqformer.training.sources.clip_source",
    },
)
