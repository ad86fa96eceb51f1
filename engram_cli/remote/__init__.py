"""Files behind addresses, read in ranges: the Hugging Face Hub, web servers, S3, Google Cloud.

`locate` is the one place that tells paths, Hub ids and addresses apart. It gives a `RemotePath`,
which reads like a path of this machine, so that no format knows where its files are.
"""
