"""Accuracies of all methods on sets of multiple-choice questions, before and after fine-tuning (CRISP, Table 10)."""

from __future__ import annotations

from crisp_stream.study.record.record import StudyResults
from crisp_stream.study.tables.cells import StudyTable
from crisp_stream.study.tables.comparisons import STAGES, question_columns
from crisp_stream.study.tables.methods import has_stage, ratio_table, values_table


def question_tables(study: StudyResults) -> list[StudyTable]:
    """Accuracies, and their differences to base of both stages; none where the study has no questions."""
    if not question_columns(study):
        return []
    return [
        values_table(study, "accuracy", "Accuracy", "%, mean over seeds; +ft: after fine-tuning", questions=True),
        *(ratio_table(study, stage, questions=True) for stage in STAGES if has_stage(study, stage)),
    ]
