// SPDX-License-Identifier: Apache-2.0

use super::*;
use crate::cluster::api::MachineLimits;

fn conversion(machine: &Value) -> ConversionJob {
    let disks = ["b.qcow2", "a.qcow2"].map(|file| {
        json!({"file": file, "member": "m.vmdk", "virtualSizeBytes": 1 << 30, "boot": true, "fallbackLoader": true})
    });
    let mut machines = json!({
        "describedBy": "ovf", "name": "Web 01 (prod)", "sockets": 2, "coresPerSocket": 2, "memoryMib": 4096,
        "firmware": "bios", "guestOs": "ubuntu64Guest",
        "disks": [{"file": "a.qcow2", "bus": "virtio", "bootOrder": 1}, {"file": "b.qcow2"}],
        "cards": [
            {"network": "VM Network", "mac": "00:50:56:9a:12:34", "connected": true, "device": "virtio"},
            {"network": "Backup LAN", "mac": "00:50:56:9a:12:35", "connected": true, "device": "e1000"},
        ],
    });
    machines.as_object_mut().unwrap().extend(machine.as_object().unwrap().clone());
    serde_json::from_value(json!({
        "metadata": {"name": "web01-4e1a1fe6", "namespace": "migration", "uid": "conversion"},
        "spec": {"queueRef": {"name": "q"}, "source": {"path": "web01.ova"}},
        "status": {
            "plan": {"disks": disks, "machines": [machines]}, "target": {},
            "volumes": [{"claimName": "web-01-prod-disk-0"}, {"claimName": "web-01-prod-disk-1"}],
            "virtualMachine": {"name": "web-01-prod"},
        },
    }))
    .unwrap()
}

fn settings(settings: Value) -> MachineSettings {
    serde_json::from_value(settings).unwrap()
}

fn built(machine: &Value, wanted: Value) -> (Value, Vec<String>) {
    let manifest = manifest(&conversion(machine), &settings(wanted), 0).unwrap();
    (manifest.object, manifest.doubts)
}

#[test]
fn a_machine_has_its_disks_in_its_own_order_each_on_its_claim() {
    let networks =
        json!([{"source": "VM Network", "multus": {"networkName": "n/vlan"}}, {"source": "*", "ignore": {}}]);
    let (machine, doubts) = built(&json!({}), json!({"networks": networks, "create": "Running"}));
    assert_eq!(doubts, Vec::<String>::new());
    insta::assert_yaml_snapshot!(machine);
}

#[test]
fn a_machine_starts_by_itself_only_when_nothing_is_doubted() {
    let all = json!([{"source": "VM Network", "pod": {}}, {"source": "*", "ignore": {}}]);
    let is_windows = json!({"guestOs": "windows2019srv_64Guest"});
    for (machine, networks, expected) in [
        (json!({}), &all, None),
        (json!({}), &json!([{"source": "*", "pod": {}}]), Some("network card 2 (Backup LAN) is left out")),
        (
            json!({}),
            &json!([{"source": "Backup LAN", "ignore": {}}]),
            Some("network card 1 (VM Network) is on the pod's"),
        ),
        (json!({"doubts": ["odd"]}), &all, Some("odd")),
        (json!({"tpm": true}), &all, Some("its TPM is left out")),
        (is_windows, &all, Some("guestTimezone is not set")),
    ] {
        let (object, doubts) = built(&machine, json!({"networks": networks, "create": "Running"}));
        let expected_strategy = if expected.is_none() { "Always" } else { "Halted" };
        assert_eq!(object["spec"]["runStrategy"], expected_strategy, "{machine} {doubts:?}");
        let is_said = expected.is_none_or(|text| doubts.iter().any(|doubt| doubt.contains(text)));
        assert!(is_said, "{expected:?} in {doubts:?}");
    }
}

#[test]
fn what_the_devices_setting_settles_is_no_doubt_any_more() {
    let mut machine = conversion(&json!({"firmware": "efi"})).status.unwrap().plan.unwrap().machines.remove(0);
    crate::conversion::machine::decide(&mut machine, crate::conversion::machine::Drivers::default());
    assert!(!machine.doubts.is_empty());
    assert_eq!(doubts_beside_devices(&machine, true), Vec::<String>::new());
    assert_eq!(doubts_beside_devices(&machine, false).len(), 1, "EFI variables");
}

#[test]
fn devices_are_those_that_are_asked_for() {
    let of = |devices: &str| {
        let (object, _) = built(&json!({}), json!({"devices": devices}));
        let devices = &object["spec"]["template"]["spec"]["domain"]["devices"];
        (devices["disks"][0]["disk"]["bus"].clone(), devices["interfaces"][0]["model"].clone())
    };
    assert_eq!(of("Compatible"), (json!("sata"), json!("e1000e")));
    assert_eq!(of("FromSource"), (json!("virtio"), json!("virtio")));
    assert_eq!(of("Virtio"), (json!("virtio"), json!("virtio")));
}

#[test]
fn a_guest_that_was_made_ready_gets_virtio_and_the_doubts_that_are_left() {
    let of = |devices: &str, guest: Value| {
        let mut conversion = conversion(&json!({"doubts": ["the guest must be changed"]}));
        conversion.status.as_mut().unwrap().guest = serde_json::from_value(guest).unwrap();
        let manifest = manifest(&conversion, &settings(json!({"devices": devices})), 0).unwrap();
        let devices = &manifest.object["spec"]["template"]["spec"]["domain"]["devices"];
        let built = [&devices["disks"][1]["disk"]["bus"], &devices["interfaces"][0]["model"]];
        let doubts = manifest.doubts.into_iter().filter(|doubt| !doubt.starts_with("network card")).collect::<Vec<_>>();
        (built.map(|value| value.as_str().unwrap_or_default().to_owned()), doubts)
    };
    let fixed = json!({"outcome": "fixed", "bus": "virtio", "nic": "virtio"});
    for devices in ["Compatible", "FromSource", "Virtio"] {
        assert_eq!(of(devices, fixed.clone()), (["virtio", "virtio"].map(str::to_owned), Vec::new()), "{devices}");
    }
    let unfixed =
        json!({"outcome": "unfixed", "reason": "GuestNoSpace", "bus": "sata", "nic": "e1000e", "doubts": ["full"]});
    assert_eq!(of("Compatible", unfixed), (["sata", "e1000e"].map(str::to_owned), vec!["full".to_owned()]));
}

#[test]
fn a_source_that_asks_for_more_than_is_allowed_gets_no_machine() {
    let cpus = json!({"sockets": 100, "coresPerSocket": 100});
    let error = manifest(&conversion(&cpus), &MachineSettings::default(), 0).unwrap_err();
    assert_eq!(error, NoMachine::TooManyProcessors { asked: 10_000, limit: 64 });
    let small = MachineSettings {
        limits: MachineLimits { memory: "4095Mi".to_owned(), ..MachineLimits::default() },
        ..MachineSettings::default()
    };
    let error = manifest(&conversion(&json!({})), &small, 0).unwrap_err();
    assert_eq!(error, NoMachine::TooMuchMemory { asked_mib: 4096, limit: "4095Mi".to_owned() });
    assert_eq!(limits(&conversion(&json!({})), &small), Err(error));
}

/// A conversion of an export of two machines: the first has the second disk.
fn of_two_machines() -> ConversionJob {
    let mut conversion = conversion(&json!({}));
    let status = conversion.status.as_mut().unwrap();
    let plan = status.plan.as_mut().unwrap();
    let mut other = plan.machines[0].clone();
    plan.machines[0].disks.retain(|disk| disk.file == "a.qcow2");
    other.disks.retain(|disk| disk.file == "b.qcow2");
    other.name = Some("DB".to_owned());
    plan.machines.push(other);
    conversion
}

#[test]
fn each_machine_of_an_export_has_its_own_disks_and_a_name_of_its_own() {
    let mut conversion = of_two_machines();
    let plan = conversion.status.as_ref().unwrap().plan.clone().unwrap();
    assert_eq!(wanted_names(&conversion, &plan), ["web-01-prod", "db"]);
    assert_eq!([place_of(&plan, 0), place_of(&plan, 1)], [(1, 0), (0, 0)]);
    let status = conversion.status.as_mut().unwrap();
    status.volumes[0].claim_name = "db-disk-0".to_owned();
    status.volumes[1].claim_name = "web-01-prod-disk-0".to_owned();
    status.other_virtual_machines =
        vec![crate::cluster::api::MachineStatus { name: "db".to_owned(), ..Default::default() }];
    let made = manifests(&conversion, &settings(json!({}))).unwrap();
    let of = |n: usize| {
        let volumes = &made[n].object["spec"]["template"]["spec"]["volumes"];
        (
            made[n].object["metadata"]["name"].clone(),
            volumes[0]["persistentVolumeClaim"]["claimName"].clone(),
            volumes[1].clone(),
        )
    };
    assert_eq!(of(0), (json!("web-01-prod"), json!("web-01-prod-disk-0"), Value::Null));
    assert_eq!(of(1), (json!("db"), json!("db-disk-0"), Value::Null));

    let mut plan = plan;
    plan.machines[1].name = Some("Web 01 (prod)".to_owned());
    assert_eq!(wanted_names(&conversion, &plan), ["web-01-prod", "web-01-prod-2"]);
    conversion.spec.virtual_machine = Some(serde_json::from_value(json!({"name": "test"})).unwrap());
    assert_eq!(wanted_names(&conversion, &plan), ["test-web-01-prod", "test-web-01-prod-2"]);
}

#[test]
fn machines_that_share_a_disk_are_refused() {
    let mut conversion = of_two_machines();
    let plan = conversion.status.as_mut().unwrap().plan.as_mut().unwrap();
    plan.machines[1].disks = plan.machines[0].disks.clone();
    let refused = NoMachine::Shared { disk: "a.qcow2".to_owned() };
    assert_eq!(limits(&conversion, &MachineSettings::default()).unwrap_err(), refused);
    assert_eq!(manifests(&conversion, &MachineSettings::default()).unwrap_err(), refused);
}

#[test]
fn an_address_that_another_machine_has_is_left_out_with_a_doubt() {
    let mut conversion = conversion(&json!({}));
    let networks = json!([{"source": "VM Network", "pod": {}}, {"source": "*", "multus": {"networkName": "n"}}]);
    let settings = settings(json!({"networks": networks, "create": "Running", "preference": "debian"}));
    assert_eq!(kept_addresses(&conversion, &settings, 0), ["00:50:56:9a:12:34", "00:50:56:9a:12:35"]);
    let named = conversion.status.as_mut().unwrap().virtual_machine.as_mut().unwrap();
    named.taken_addresses = vec!["00:50:56:9a:12:35".to_owned()];
    let made = manifest(&conversion, &settings, 0).unwrap();
    let cards = &made.object["spec"]["template"]["spec"]["domain"]["devices"]["interfaces"];
    assert_eq!((&cards[0]["macAddress"], &cards[1]["macAddress"]), (&json!("00:50:56:9a:12:34"), &Value::Null));
    assert_eq!(made.doubts, ["network card 2 (Backup LAN) gets a new address: another machine has 00:50:56:9a:12:35"]);
    assert_eq!(made.object["spec"]["runStrategy"], "Halted");
    let preference = json!({"kind": "VirtualMachineClusterPreference", "name": "debian"});
    assert_eq!(made.object["spec"]["preference"], preference);
}

#[test]
fn state_is_kept_and_the_clock_is_local_where_that_is_asked_for() {
    let windows = json!({"guestOs": "windows2019srv_64Guest", "firmware": "efi", "secureBoot": true, "tpm": true});
    let (object, _) =
        built(&windows, json!({"persistentState": true, "guestTimezone": "Europe/Berlin", "macAddresses": "Generate"}));
    let domain = &object["spec"]["template"]["spec"]["domain"];
    assert_eq!(domain["firmware"]["bootloader"], json!({"efi": {"secureBoot": true, "persistent": true}}));
    assert_eq!(domain["devices"]["tpm"], json!({"persistent": true}));
    assert_eq!(domain["clock"]["timezone"], "Europe/Berlin");
    assert_eq!(domain["clock"]["utc"], Value::Null);
    assert_eq!(domain["devices"]["interfaces"][0]["macAddress"], Value::Null);
}
