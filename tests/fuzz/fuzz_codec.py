"""Coverage-guided fuzzing of what bytes from the network reach first; not run with the tests.

    pip install atheris && python tests/fuzz/fuzz_codec.py -max_total_time=60 CORPUS_DIRECTORY

The captured messages are a good start: each line's `sent` or `got` as a file of the corpus.
"""

import sys
from contextlib import suppress

import atheris

with atheris.instrument_imports():
    import msgspec
    from msgspec import Raw

    from strongroom.errors import CallError, InvalidAddress, InvalidArguments, ProtocolError
    from strongroom.messaging.address import Address
    from strongroom.messaging.arguments import unpack
    from strongroom.messaging.envelope import Data, decode, encode
    from strongroom.messaging.rpc import read_request, read_response


def one_input(data: bytes) -> None:
    """Only the errors that are meant for it may come out."""
    with suppress(ProtocolError):
        envelope = decode(data)
        again = decode(encode(envelope))
        assert encode(again) == encode(envelope)
        if envelope.to is not None:
            with suppress(InvalidAddress):
                address = Address.parse(envelope.to)
                assert Address.parse(str(address)) == address
        if isinstance(envelope.frame, Data):
            read_payload(envelope.frame.payload)


def read_payload(payload: Raw) -> None:
    with suppress(msgspec.MsgspecError, RecursionError, CallError):
        read_response(payload).value()
    with suppress(msgspec.MsgspecError, RecursionError, InvalidArguments):
        unpack(read_request(payload).params)


if __name__ == "__main__":
    atheris.Setup(sys.argv, one_input)
    atheris.Fuzz()
