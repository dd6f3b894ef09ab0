#!/usr/bin/env python3
"""Writes fixture.tfevents, what TensorBoard's own writer makes of the events in tests.rs.

usage: pip install tensorboard==2.21.0 && python3 fixture.py
"""
import pathlib

from tensorboard.compat.proto import event_pb2, summary_pb2
from tensorboard.summary.writer.record_writer import RecordWriter


def scalars(step, **values):
    entries = [summary_pb2.Summary.Value(tag=tag.replace("__", "/"), simple_value=value) for tag, value in values.items()]
    return event_pb2.Event(wall_time=1_700_000_000.25, step=step, summary=summary_pb2.Summary(value=entries))


log = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
events = [
    event_pb2.Event(wall_time=1_700_000_000.25, file_version="brain.Event:2"),
    scalars(1, train__loss=4.125, train__lr=0.0),
    event_pb2.Event(wall_time=1_700_000_000.25, step=301, session_log=log),
    scalars(70_000, **{"eval__loss": float("nan"), "eval__größe": -1e-30}),
]
with open(pathlib.Path(__file__).with_name("fixture.tfevents"), "wb") as file:
    writer = RecordWriter(file)
    for event in events:
        writer.write(event.SerializeToString())
    writer.flush()
