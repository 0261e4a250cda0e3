"""Our storage under other frameworks. Each module needs its framework: `strongroom[NAME]`."""
