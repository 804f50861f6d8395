// SPDX-License-Identifier: Apache-2.0
//! Objects that the API server must refuse, each with its message; and some that it must accept.

use serde_json::{Value, json};

/// Changes that make a queue wrong.
#[expect(clippy::too_many_lines, reason = "a table")]
pub(super) fn queues() -> Vec<(Value, &'static str)> {
    vec![
        (
            json!({"metadata": {"name": "a-queue-whose-name-has-forty-one-characters"}}),
            "<nil>: Invalid value: a HyperConversion's name has at most 40 characters: names of pods are made from it",
        ),
        (
            json!({"metadata": {"name": "has.dots"}}),
            "<nil>: Invalid value: a HyperConversion's name has no dots: names of pods are made from it",
        ),
        (json!({"spec": {"queue": null}}), "spec.queue: Required value"),
        (json!({"spec": {"output": null}}), "spec.output: Required value"),
        (json!({"spec": {"queue": {"claimName": null}}}), "spec.queue.claimName: Required value"),
        (
            json!({"spec": {"queue": {"claimName": ""}}}),
            r#"spec.queue.claimName: Invalid value: "": spec.queue.claimName in body should be at least 1 chars long"#,
        ),
        (
            json!({"spec": {"queue": {"claimName": "Images"}}}),
            r#"spec.queue.claimName: Invalid value: "Images": spec.queue.claimName in body should match '^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$'"#,
        ),
        (
            json!({"spec": {"queue": {"subPath": "/queue"}}}),
            r#"spec.queue.subPath: Invalid value: "/queue": subPath is relative to the volume's root: no slash at either end, none doubled, no control characters"#,
        ),
        (
            json!({"spec": {"queue": {"subPath": "queue/"}}}),
            r#"spec.queue.subPath: Invalid value: "queue/": subPath is relative to the volume's root: no slash at either end, none doubled, no control characters"#,
        ),
        (
            json!({"spec": {"queue": {"subPath": "a//b"}}}),
            r#"spec.queue.subPath: Invalid value: "a//b": subPath is relative to the volume's root: no slash at either end, none doubled, no control characters"#,
        ),
        (
            json!({"spec": {"queue": {"subPath": "../queue"}}}),
            r#"spec.queue.subPath: Invalid value: "../queue": subPath is relative to the volume's root: no part of it is . or .."#,
        ),
        (
            json!({"spec": {"queue": {"subPath": "a/../../b"}}}),
            r#"spec.queue.subPath: Invalid value: "a/../../b": subPath is relative to the volume's root: no part of it is . or .."#,
        ),
        (
            json!({"spec": {"queue": {"subPath": "./queue"}}}),
            r#"spec.queue.subPath: Invalid value: "./queue": subPath is relative to the volume's root: no part of it is . or .."#,
        ),
        (
            json!({"spec": {"queue": {"subPath": "with\nline"}}}),
            r#"spec.queue.subPath: Invalid value: "with\nline": subPath is relative to the volume's root: no slash at either end, none doubled, no control characters"#,
        ),
        (
            json!({"spec": {"output": {"subPath": "queue"}}}),
            "[spec: Invalid value: queue lies in output: give them sibling directories, such as subPath queue and subPath output, spec: Invalid value: output lies in queue: give them sibling directories, such as subPath queue and subPath output]",
        ),
        (
            json!({"spec": {"output": {"subPath": "queue/out"}}}),
            "spec: Invalid value: output lies in queue: give them sibling directories, such as subPath queue and subPath output",
        ),
        (
            json!({"spec": {"queue": {"subPath": "output/in"}}}),
            "spec: Invalid value: queue lies in output: give them sibling directories, such as subPath queue and subPath output",
        ),
        (
            json!({"spec": {"output": {"subPath": ""}}}),
            "spec: Invalid value: queue lies in output: give them sibling directories, such as subPath queue and subPath output",
        ),
        (
            json!({"spec": {"queue": {"subPath": ""}}}),
            "spec: Invalid value: output lies in queue: give them sibling directories, such as subPath queue and subPath output",
        ),
        (
            json!({"spec": {"maxConcurrentJobs": 0}}),
            "spec.maxConcurrentJobs: Invalid value: 0: spec.maxConcurrentJobs in body should be greater than or equal to 1",
        ),
        (
            json!({"spec": {"maxConcurrentJobs": 1001}}),
            "spec.maxConcurrentJobs: Invalid value: 1001: spec.maxConcurrentJobs in body should be less than or equal to 1000",
        ),
        (
            json!({"spec": {"maxConcurrentJobs": "3"}}),
            r#"spec.maxConcurrentJobs: Invalid value: "string": spec.maxConcurrentJobs in body must be of type integer: "string""#,
        ),
        (
            json!({"spec": {"fileStableTimeoutSeconds": 0}}),
            "spec.fileStableTimeoutSeconds: Invalid value: 0: spec.fileStableTimeoutSeconds in body should be greater than or equal to 1",
        ),
        (
            json!({"spec": {"companionTimeoutSeconds": 2_592_001}}),
            "spec.companionTimeoutSeconds: Invalid value: 2592001: spec.companionTimeoutSeconds in body should be less than or equal to 2592000",
        ),
        (
            json!({"spec": {"archiveProcessed": "yes"}}),
            r#"spec.archiveProcessed: Invalid value: "string": spec.archiveProcessed in body must be of type boolean: "string""#,
        ),
        (
            json!({"spec": {"retryPolicy": {"maxRetries": -1}}}),
            "spec.retryPolicy.maxRetries: Invalid value: -1: spec.retryPolicy.maxRetries in body should be greater than or equal to 0",
        ),
        (
            json!({"spec": {"retryPolicy": {"maxRetries": 101}}}),
            "spec.retryPolicy.maxRetries: Invalid value: 101: spec.retryPolicy.maxRetries in body should be less than or equal to 100",
        ),
        (
            json!({"spec": {"retryPolicy": {"backoffMultiplier": 2.0}}}),
            r#"spec.retryPolicy.backoffMultiplier: Invalid value: "number": spec.retryPolicy.backoffMultiplier in body must be of type string: "number""#,
        ),
        (
            json!({"spec": {"retryPolicy": {"backoffMultiplier": "fast"}}}),
            r#"spec.retryPolicy.backoffMultiplier: Invalid value: "fast": backoffMultiplier is a number from 1 to 10 in quotes, such as "2.0""#,
        ),
        (
            json!({"spec": {"retryPolicy": {"backoffMultiplier": "0.5"}}}),
            r#"spec.retryPolicy.backoffMultiplier: Invalid value: "0.5": backoffMultiplier is a number from 1 to 10 in quotes, such as "2.0""#,
        ),
        (
            json!({"spec": {"conversion": {"outFormat": "vmdk"}}}),
            r#"spec.conversion.outFormat: Unsupported value: "vmdk": supported values: "qcow2", "raw", "vdi""#,
        ),
        (
            json!({"spec": {"conversion": {"compress": "lzma"}}}),
            r#"spec.conversion.compress: Unsupported value: "lzma": supported values: "none", "zstd", "zlib", "zlib-strict""#,
        ),
        (
            json!({"spec": {"conversion": {"outFormat": "raw", "compress": "zlib"}}}),
            "spec.conversion: Invalid value: compress needs outFormat qcow2: raw and vdi have no compression; set compress to none",
        ),
        (
            json!({"spec": {"conversion": {"compressLevel": 3}}}),
            "spec.conversion: Invalid value: compressLevel needs compress zlib, zstd or zlib-strict",
        ),
        (
            json!({"spec": {"conversion": {"compress": "zlib", "compressLevel": 13}}}),
            "spec.conversion: Invalid value: compressLevel above 12 exists for zstd alone",
        ),
        (
            json!({"spec": {"conversion": {"compress": "zstd", "compressLevel": 20}}}),
            "spec.conversion.compressLevel: Invalid value: 20: spec.conversion.compressLevel in body should be less than or equal to 19",
        ),
        (
            json!({"spec": {"conversion": {"maxVirtualSize": "64T"}}}),
            r#"spec.conversion.maxVirtualSize: Invalid value: "64T": maxVirtualSize is a size in binary units, such as 64Ti or 512Gi, and at most 1Pi"#,
        ),
        (
            json!({"spec": {"conversion": {"maxVirtualSize": "2Pi"}}}),
            r#"spec.conversion.maxVirtualSize: Invalid value: "2Pi": maxVirtualSize is a size in binary units, such as 64Ti or 512Gi, and at most 1Pi"#,
        ),
        (
            json!({"spec": {"conversion": {"activeDeadlineSeconds": 0}}}),
            "spec.conversion.activeDeadlineSeconds: Invalid value: 0: spec.conversion.activeDeadlineSeconds in body should be greater than or equal to 1",
        ),
        (
            json!({"spec": {"notifications": {"stalledAfterSeconds": 0}}}),
            "spec.notifications.stalledAfterSeconds: Invalid value: 0: spec.notifications.stalledAfterSeconds in body should be greater than or equal to 1",
        ),
        (
            json!({"spec": {"notifications": {"webhook": {"type": "slack"}}}}),
            "spec.notifications.webhook.urlSecretRef: Required value",
        ),
        (
            json!({"spec": {"notifications": {"webhook": {"type": "teams", "urlSecretRef": {"name": "hooks", "key": "url"}}}}}),
            r#"spec.notifications.webhook.type: Unsupported value: "teams": supported values: "slack", "discord", "generic""#,
        ),
        (
            json!({"spec": {"notifications": {"webhook": {"urlSecretRef": {"name": "hooks"}}}}}),
            "spec.notifications.webhook.urlSecretRef.key: Required value",
        ),
        (
            json!({"spec": {"notifications": {"email": {"from": "a@example.com", "to": ["b@example.com"]}}}}),
            "spec.notifications.email.host: Required value",
        ),
        (
            json!({"spec": {"notifications": {"email": {"host": "", "from": "a@example.com", "to": ["b@example.com"]}}}}),
            r#"spec.notifications.email.host: Invalid value: "": spec.notifications.email.host in body should be at least 1 chars long"#,
        ),
        (
            json!({"spec": {"notifications": {"email": {"host": "smtp.example.com", "from": "a@example.com", "to": []}}}}),
            "spec.notifications.email.to: Invalid value: 0: spec.notifications.email.to in body should have at least 1 items",
        ),
        (
            json!({"spec": {"notifications": {"email": {"host": "smtp.example.com", "from": "nobody", "to": ["b@example.com"]}}}}),
            r#"spec.notifications.email.from: Invalid value: "nobody": spec.notifications.email.from in body should match '^[^@\s]+@[^@\s]+$'"#,
        ),
        (
            json!({"spec": {"notifications": {"email": {"host": "smtp.example.com", "port": 70000, "from": "a@example.com", "to": ["b@example.com"]}}}}),
            "spec.notifications.email.port: Invalid value: 70000: spec.notifications.email.port in body should be less than or equal to 65535",
        ),
        (
            json!({"spec": {"securityContext": {"runAsUser": 0}}}),
            "spec.securityContext.runAsUser: Invalid value: 0: spec.securityContext.runAsUser in body should be greater than or equal to 1",
        ),
        (
            json!({"spec": {"securityContext": {"fsGroup": -1}}}),
            "spec.securityContext.fsGroup: Invalid value: -1: spec.securityContext.fsGroup in body should be greater than or equal to 0",
        ),
        (
            json!({"spec": {"worker": {"queueName": "Not A Label"}}}),
            r#"spec.worker.queueName: Invalid value: "Not A Label": spec.worker.queueName in body should match '^([a-z0-9]([-a-z0-9]*[a-z0-9])?)?$'"#,
        ),
        (
            json!({"spec": {"worker": {"priorityClassName": "UPPER"}}}),
            r#"spec.worker.priorityClassName: Invalid value: "UPPER": spec.worker.priorityClassName in body should match '^([a-z0-9]([-a-z0-9.]*[a-z0-9])?)?$'"#,
        ),
        (
            json!({"spec": {"watcher": {"proxy": {"httpsProxy": "proxy:3128"}}}}),
            r#"spec.watcher.proxy.httpsProxy: Invalid value: "proxy:3128": spec.watcher.proxy.httpsProxy in body should match '^(https?://\S+)?$'"#,
        ),
        (
            json!({"spec": {"runState": "Sleeping"}}),
            r#"spec.runState: Unsupported value: "Sleeping": supported values: "Running", "Paused", "Draining", "Stopped""#,
        ),
        (
            json!({"spec": {"successfulHistoryLimit": -1}}),
            "spec.successfulHistoryLimit: Invalid value: -1: spec.successfulHistoryLimit in body should be greater than or equal to 0",
        ),
        (
            json!({"spec": {"failedHistoryLimit": 100_001}}),
            "spec.failedHistoryLimit: Invalid value: 100001: spec.failedHistoryLimit in body should be less than or equal to 100000",
        ),
    ]
}

/// Changes that make a conversion wrong.
pub(super) fn conversions() -> Vec<(Value, &'static str)> {
    vec![
        (
            json!({"metadata": {"name": "a-conversion-whose-name-has-more-than-52-characters-1"}}),
            "<nil>: Invalid value: a ConversionJob's name has at most 52 characters: names of Jobs and pods are made from it",
        ),
        (
            json!({"metadata": {"name": "web01.ova"}}),
            "<nil>: Invalid value: a ConversionJob's name has no dots: names of Jobs and pods are made from it",
        ),
        (json!({"spec": null}), "spec: Required value"),
        (json!({"spec": {"queueRef": null}}), "spec.queueRef: Required value"),
        (
            json!({"spec": {"queueRef": {"name": ""}}}),
            r#"spec.queueRef.name: Invalid value: "": spec.queueRef.name in body should be at least 1 chars long"#,
        ),
        (
            json!({"spec": {"queueRef": {"name": "a-queue-whose-name-has-forty-one-characters"}}}),
            "spec.queueRef.name: Too long: may not be more than 40 bytes",
        ),
        (json!({"spec": {"source": null}}), "spec.source: Required value"),
        (json!({"spec": {"source": {"path": null}}}), "spec.source.path: Required value"),
        (
            json!({"spec": {"source": {"path": ""}}}),
            r#"[spec.source.path: Invalid value: "": spec.source.path in body should be at least 1 chars long, spec.source.path: Invalid value: "": path is relative to the queue: no slash at either end, none doubled, no control characters]"#,
        ),
        (
            json!({"spec": {"source": {"path": "/etc/passwd"}}}),
            r#"spec.source.path: Invalid value: "/etc/passwd": path is relative to the queue: no slash at either end, none doubled, no control characters"#,
        ),
        (
            json!({"spec": {"source": {"path": "../other/web01.ova"}}}),
            r#"spec.source.path: Invalid value: "../other/web01.ova": path is relative to the queue: no part of it is . or .."#,
        ),
        (
            json!({"spec": {"source": {"path": ".errors/../../web01.ova"}}}),
            r#"spec.source.path: Invalid value: ".errors/../../web01.ova": path is relative to the queue: no part of it is . or .."#,
        ),
        (
            json!({"spec": {"source": {"path": "a\tb.ova"}}}),
            r#"spec.source.path: Invalid value: "a\tb.ova": path is relative to the queue: no slash at either end, none doubled, no control characters"#,
        ),
        (
            json!({"spec": {"source": {"path": ".processing/web01-3fa9c1d2/web01.ova"}}}),
            r#"spec.source.path: Invalid value: ".processing/web01-3fa9c1d2/web01.ova": path lies in .processing: what is there is being converted already"#,
        ),
        (
            json!({"spec": {"source": {"companions": ["disk.vmdk", "../disk2.vmdk"]}}}),
            r#"spec.source.companions[1]: Invalid value: "../disk2.vmdk": spec.source.companions[1] in body should match '^[^/\x00-\x1f\x7f]+$'"#,
        ),
        (
            json!({"spec": {"source": {"companions": [".."]}}}),
            "spec.source.companions: Invalid value: a companion is the name of a file beside the source",
        ),
        (
            json!({"spec": {"source": {"companions": [""]}}}),
            r#"spec.source.companions[0]: Invalid value: "": spec.source.companions[0] in body should be at least 1 chars long"#,
        ),
        (
            json!({"spec": {"source": {"sizeBytes": -1}}}),
            "spec.source.sizeBytes: Invalid value: -1: spec.source.sizeBytes in body should be greater than or equal to 0",
        ),
        (
            json!({"spec": {"conversion": {"outFormat": "vhd"}}}),
            r#"spec.conversion.outFormat: Unsupported value: "vhd": supported values: "qcow2", "raw", "vdi""#,
        ),
        (
            json!({"spec": {"conversion": {"outFormat": "raw", "compress": "zstd"}}}),
            "spec.conversion: Invalid value: compress needs outFormat qcow2: raw and vdi have no compression; set compress to none",
        ),
        (
            json!({"spec": {"conversion": {"maxVirtualSize": "0"}}}),
            r#"spec.conversion.maxVirtualSize: Invalid value: "0": maxVirtualSize is a size in binary units, such as 64Ti or 512Gi, and at most 1Pi"#,
        ),
        (
            json!({"spec": {"conversion": {"activeDeadlineSeconds": 2_592_001}}}),
            "spec.conversion.activeDeadlineSeconds: Invalid value: 2592001: spec.conversion.activeDeadlineSeconds in body should be less than or equal to 2592000",
        ),
    ]
}

/// Changes that must be refused for a stored queue.
pub(super) fn queue_changes() -> Vec<(Value, &'static str)> {
    vec![
        (
            json!({"spec": {"queue": {"subPath": "elsewhere"}}}),
            "spec.queue: Invalid value: queue is immutable: artifacts under way lie there; make another HyperConversion",
        ),
        (
            json!({"spec": {"output": {"claimName": "other"}}}),
            "spec.output: Invalid value: output is immutable: the ledger lies there; make another HyperConversion",
        ),
        (
            json!({"spec": {"maxConcurrentJobs": 0}}),
            "spec.maxConcurrentJobs: Invalid value: 0: spec.maxConcurrentJobs in body should be greater than or equal to 1",
        ),
    ]
}

/// Changes that must be refused for a stored conversion.
pub(super) fn conversion_changes() -> Vec<(Value, &'static str)> {
    vec![
        (
            json!({"spec": {"source": {"path": "web02.ova"}}}),
            "spec: Invalid value: a ConversionJob's spec is immutable: make another ConversionJob",
        ),
        (
            json!({"spec": {"conversion": {"outFormat": "raw"}}}),
            "spec: Invalid value: a ConversionJob's spec is immutable: make another ConversionJob",
        ),
        (
            json!({"spec": {"duplicateOf": "web00-3fa9c1d2"}}),
            "spec: Invalid value: a ConversionJob's spec is immutable: make another ConversionJob",
        ),
        (
            json!({"spec": {"queueRef": {"name": "other"}}}),
            "spec: Invalid value: a ConversionJob's spec is immutable: make another ConversionJob",
        ),
    ]
}

/// Changes that leave a queue valid.
pub(super) fn good_queues() -> Vec<Value> {
    vec![
        json!({}),
        json!({"metadata": {"name": "a-queue-of-exactly-forty-characters-name"}}),
        json!({"spec": {"output": {"claimName": "elsewhere", "subPath": "queue"}}}),
        json!({"spec": {"output": {"claimName": "elsewhere", "subPath": ""}}}),
        json!({"spec": {"queue": {"subPath": "out"}, "output": {"subPath": "output"}}}),
        json!({"spec": {"queue": {"subPath": "exports/..data/vm ware"}}}),
        json!({"spec": {"conversion": {"compress": "zlib-strict", "compressLevel": 12}}}),
        json!({"spec": {"conversion": {"maxVirtualSize": "1Pi"}}}),
        json!({"spec": {"retryPolicy": {"enabled": false, "backoffMultiplier": "1"}}}),
        json!({"spec": {"securityContext": {"runAsUser": 1_000_680_000, "runAsGroup": 0, "supplementalGroups": [2000]}}}),
        json!({"spec": {"notifications": {
            "webhook": {"urlSecretRef": {"name": "hooks", "key": "url"}, "headersSecretRef": {"name": "hooks"}},
            "email": {"host": "smtp.example.com", "from": "a@example.com", "to": ["b@example.com"],
                      "credentialsSecretRef": {"name": "smtp"}},
        }}}),
        json!({"spec": {"worker": {"priorityClassName": "", "queueName": "", "affinity": {}, "tolerations": []}}}),
        json!({"spec": {"runState": "Paused", "successfulHistoryLimit": 0}}),
    ]
}

/// Changes that leave a conversion valid.
pub(super) fn good_conversions() -> Vec<Value> {
    vec![
        json!({}),
        json!({"spec": {"source": {"path": ".errors/web01.ova"}}}),
        json!({"spec": {"source": {"path": ".processed/2026-01-17/web 01 (ü).ova", "companions": ["web01-disk1.vmdk"]}}}),
        json!({"spec": {"conversion": {"compress": "zstd"}, "duplicateOf": ""}}),
        json!({"metadata": {"name": "a-conversion-whose-name-has-exactly-52-characters-xy"}}),
    ]
}
