"""The listeners: routes, answers, limits. The only package that knows HTTP on the way in."""
