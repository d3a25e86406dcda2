//! Names of metrics and fields, in one place; set-up of logs and of the metrics' recorder.
