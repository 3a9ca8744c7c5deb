"""All services as processes of one machine: what `rookery up` runs.

It starts the same programs that a cluster runs and tells them where things are by their own settings; nothing of any
service is imported here.
"""
