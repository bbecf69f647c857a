"""Static membership: whether another process has taken this one's name in the group."""

from __future__ import annotations

import re

from service.kafka import administrator
from service.settings import Settings

# The broker makes a static member's id of its name.
SUFFIX = re.compile(r"-[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


async def name_is_taken(settings: Settings) -> bool:
    """Whether the group has a member by this process's group_instance_id. Raises KafkaError.

    To be asked when this process has lost its membership and not yet joined again: whoever has the name then is another
    one. (aiokafka's requests carry the name when they join only, so that the broker never says FENCED_INSTANCE_ID.)
    """
    name = settings.kafka.group_instance_id
    async with administrator(settings) as admin:
        [described] = await admin.describe_consumer_groups([settings.kafka.group_id])
    [(_, _, _, _, _, members, *_)] = described.groups
    return any(SUFFIX.sub("", member_id) == name for member_id, *_ in members)
