"""The components that come with the gateway. They know it through `edge.api` alone, as any other plugin does."""
