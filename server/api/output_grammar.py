"""Holds a job's outputs to the form that its body asks for."""

from __future__ import annotations

from dataclasses import replace

import msgspec

from server.api.context import ServerContext
from server.api.job import Job
from server.api.output_form import FormFields
from server.errors import InvalidRequestError
from server.text.grammars import within


async def held_to_form(context: ServerContext, body: FormFields, job: Job) -> Job:
    """``job`` with the grammar of what ``body`` asks its outputs to look like. Raises InvalidRequestError.

    A job that has a grammar already, as one that must call a tool, keeps that. Its ``lead`` may stand before the form.
    """
    if job.beams is not None and (job.sampling.grammar or body.form() is not None):
        raise InvalidRequestError(
            "beams follow no form, of text or of calls; leave `use_beam_search` out", param="use_beam_search"
        )
    if job.sampling.grammar or (form := body.form()) is None:
        return job
    grammar = await context.grammars.make(form)
    begins_text = not job.continues and job.tokenizer.drops_first_space  # and then the space that it begins with
    if job.lead or begins_text:
        grammar = within(('" "? ' if begins_text else "") + (job.lead or "@inner"), grammar)
    return replace(job, sampling=msgspec.structs.replace(job.sampling, grammar=grammar))
