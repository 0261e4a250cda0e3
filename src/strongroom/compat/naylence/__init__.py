"""Naylence's modules, under their names there, so that its programs run with their imports renamed:
`naylence.agent` is `strongroom.compat.naylence.agent`, and so on. `strongroom port` does this in a
tree. New programs import from `strongroom`; what only Naylence's programs need is here too.
"""

from strongroom.compat.naylence.agent import configs as configs
from strongroom.compat.naylence.fame.core import AGENT_CAPABILITY as AGENT_CAPABILITY
from strongroom.compat.naylence.fame.core import DeliveryAckFrame as DeliveryAckFrame
from strongroom.compat.naylence.fame.core import FameEnvelope as FameEnvelope
from strongroom.compat.naylence.fame.core import FameMessageResponse as FameMessageResponse
from strongroom.compat.naylence.fame.core import generate_id as generate_id
from strongroom.compat.naylence.fame.node.node import get_node as get_node
from strongroom.compat.naylence.fame.util.logging import enable_logging as enable_logging
from strongroom.compat.naylence.fame.util.logging import getLogger as getLogger
