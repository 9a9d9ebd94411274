//! The main job on real input: the release build of `taipand` under real clients, killed, restarted
//! and damaged. `tools/check` builds the programs and runs these; see docs/operations/testing.md.

mod harness;

mod a_client_that_stays_alive;
mod a_clone_goes_its_own_way;
mod a_crash_at_any_step_loses_nothing;
mod a_deleted_volume_frees_its_space;
mod a_discard_of_everything_costs_nothing;
mod a_flush_covers_other_connections;
mod a_foreign_tool_backs_up_what_changed;
mod a_fresh_start_serves;
mod a_kicked_client_keeps_what_was_answered;
mod a_lost_cache_is_decided_by_the_operator;
mod a_parked_write_never_lands_late;
mod a_power_cut_without_s3_loses_nothing;
mod a_rollback_restores_what_was;
mod a_second_daemon_fences_the_first;
mod a_snapshot_is_a_cut_that_stays;
mod a_virtual_machine_survives_restarts;
mod an_outage_of_s3_is_waited_out;
mod bad_settings_are_refused;
mod clients_do_not_notice_a_successor;
mod clients_see_the_map;
mod copied_bytes_come_back;
mod damage_is_reported;
mod fio_verifies_after_a_kill;
mod full_disks_lose_nothing;
mod garbage_does_not_disturb;
mod injected_wal_errors;
mod lost_responses_lose_nothing;
mod overwrites_do_not_fill_the_bucket;
mod promises_change_while_in_use;
mod quiet_volumes_cost_nothing;
mod rules_say_who_may_use_a_volume;
mod slow_readers_hurt_only_themselves;
mod the_bucket_brings_everything_back;
mod the_bucket_holds_a_cut;
mod the_command_copies_and_inspects;
mod the_kernel_client_keeps_its_files;
mod the_service_manager_makes_the_sockets;
mod tls_tells_friends_from_strangers;
mod volumes_have_speed_limits;
mod what_a_start_left_open_is_decided_later;
mod wrong_bytes_are_never_returned;
