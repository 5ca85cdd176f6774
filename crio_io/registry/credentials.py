"""Everything that a pull may show to registries, gathered before it begins: request, auth file, credential helpers."""

import time
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path

from crio_core.cri import AuthConfig
from crio_core.image.auth import Auth, AuthFile, Credentials, canonical_host, parse_auth_file
from crio_core.image.helpers import Question, parse_answer, questions
from crio_core.image.resolved import Candidate
from crio_io import spawn
from crio_io.mounts import in_thread
from crio_io.registry.configuration import read_bounded

HELPER_S = 10.0
HELPER_BYTES_MAX = 256 * 1024
ANSWERS_MAX = 64
ANSWER_KEPT_S = 60.0
"""A pull asks for each of its layers; tokens that helpers give are good for hours."""


class CredentialSources:
    """Gathers credentials, and remembers what helpers said for a while."""

    def __init__(self) -> None:
        self._answers: OrderedDict[Question, tuple[Credentials, float]] = OrderedDict()

    async def gather(
        self, request: AuthConfig, auth_file: str, helpers: tuple[str, ...], places: Sequence[Candidate]
    ) -> Auth:
        """What may be shown at each of these places. Helpers are asked only where the request has nothing.

        Args:
            request: The AuthConfig of the call.
            auth_file: A path; empty for none.
            helpers: `credential-helpers` of registries.conf.

        Raises:
            OperationError: The file, or its entry of one of these hosts, cannot be read, or a helper failed
                (CREDENTIAL_HELPER_FAILED, TIMEOUT, EXECUTABLE_NOT_FOUND).
        """
        file = AuthFile()
        if auth_file:
            file = parse_auth_file(await in_thread(f"read auth file {auth_file}", read_bounded, Path(auth_file)))
        for place in places:
            if (fault := file.faults.get(canonical_host(place.host))) is not None:
                raise fault
        auth = Auth(cri=request, auths=file.auths)
        helped = {}
        for place in places:
            if auth.from_request(place).is_anonymous:
                for question in questions(file, helpers, place.host, place.repository):
                    found = await self._ask(question)
                    if not found.is_anonymous:
                        helped[(place.host, place.repository)] = found
                        break
        return Auth(cri=request, auths=file.auths, helped=helped)

    async def _ask(self, question: Question) -> Credentials:
        known = self._answers.get(question)
        if known is not None and time.monotonic() < known[1]:
            return known[0]
        done = await spawn.run(
            [question.program, "get"],
            stdin=f"{question.server}\n".encode(),
            timeout_s=HELPER_S,
            output_max_bytes=HELPER_BYTES_MAX,
        )
        found = parse_answer(question, done.returncode, done.stdout)
        self._answers.pop(question, None)
        self._answers[question] = (found, time.monotonic() + ANSWER_KEPT_S)
        while len(self._answers) > ANSWERS_MAX:
            self._answers.popitem(last=False)
        return found
