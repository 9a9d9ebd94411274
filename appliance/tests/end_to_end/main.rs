//! The main job on real input: the release build of `taipand` under real clients, killed, restarted
//! and damaged. `tools/check` builds the programs and runs these; see docs/operations/testing.md.

mod harness;

mod a_client_that_stays_alive;
mod a_flush_covers_other_connections;
mod a_fresh_start_serves;
mod a_parked_write_never_lands_late;
mod a_virtual_machine_survives_restarts;
mod bad_settings_are_refused;
mod copied_bytes_come_back;
mod damage_is_reported;
mod fio_verifies_after_a_kill;
mod full_disks_lose_nothing;
mod garbage_does_not_disturb;
mod injected_wal_errors;
mod the_command_copies_and_inspects;
mod the_kernel_client_keeps_its_files;
