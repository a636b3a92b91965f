"""Calls stock Borg's own Repository: a line of JSON for each call on standard input, one for each answer."""
import json
import logging
import os
import sys

from borg import logger

logger.configured = True
warnings = []


class Keep(logging.Handler):
    def emit(self, record):
        warnings.append(record.getMessage())


logging.getLogger().addHandler(Keep(logging.WARNING))

from borg.platform import get_process_id  # noqa: E402
from borg.repository import Repository  # noqa: E402

repository = None


def call(method, args):
    global repository
    if method == "host":
        return get_process_id()[0]
    if method == "open":
        path = args.pop("path")
        repository = Repository(path, **args)
        repository.__enter__()
        return repository.id.hex()
    if method == "close":
        repository.__exit__(None, None, None)
        repository = None
        return None
    if method == "die":
        os._exit(1)
    for name in ("id", "marker", "data", "keydata"):
        if args.get(name) is not None:
            args[name] = bytes.fromhex(args[name])
    if method == "len":
        return len(repository)
    answer = getattr(repository, method)(**args)
    if isinstance(answer, bytes):
        return answer.hex()
    if isinstance(answer, list):
        return [item.hex() for item in answer]
    return answer


for line in sys.stdin:
    request = json.loads(line)
    try:
        reply = {"ok": call(request["method"], request["args"])}
    except Exception as error:
        reply = {"error": type(error).__name__, "text": str(error)}
    reply["warnings"] = list(warnings)
    warnings.clear()
    print(json.dumps(reply), flush=True)
