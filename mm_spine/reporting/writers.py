from mm_spine.records import *  # noqa: F403
