-- Makes a load's staging tables, anew where the session has loaded before: one row is one line of the file. (Several statements: they are of no use apart.)
-- What a line does not give is null, but in org, program and reward, where it takes the mildest default.
drop table if exists pg_temp.staged_fault, pg_temp.staged_org, pg_temp.staged_program, pg_temp.staged_customer,
    pg_temp.staged_identifier, pg_temp.staged_reward, pg_temp.staged_lot, pg_temp.staged_redemption, pg_temp.final_identifier,
    pg_temp.default_program, pg_temp.touched_customer;
create temporary table staged_fault (line bigint not null, field text not null, message text not null);
create temporary table staged_org (line bigint not null, org_id bigint not null, reversal_enabled boolean not null);
create temporary table staged_program (
    line bigint not null, org_id bigint not null, program_id text not null, is_default boolean not null,
    live boolean not null, decimals smallint not null, reversal_allowed boolean not null, allow_partial boolean not null,
    reversal_window_days integer, minimum_points bigint not null, max_reversals_count integer, max_reversals_days integer,
    expired_lots_policy text not null, grace_days integer, park_unknown_seconds integer not null
);
create temporary table staged_customer (
    line bigint not null, org_id bigint not null, customer_id bigint not null, status text, locked_until timestamptz,
    locked_until_given boolean not null, identifiers_given boolean not null, updated_at timestamptz
);
create temporary table staged_identifier (
    line bigint not null, org_id bigint not null, customer_id bigint not null, type text not null, lookup text not null,
    value text not null
);
create temporary table staged_reward (
    line bigint not null, org_id bigint not null, reward_id text not null, max_total bigint, redeemed_count bigint not null,
    status text not null
);
create temporary table staged_lot (
    line bigint not null, org_id bigint not null, customer_id bigint not null, lot_id text not null, program_id text,
    points bigint not null, remaining bigint not null, expires_at timestamptz, issued_at timestamptz
);
create temporary table staged_redemption (
    line bigint not null, org_id bigint not null, customer_id bigint not null, redemption_id text not null, program_id text,
    order_id text, type text, points bigint not null, reversed bigint not null, quantity bigint, reversed_quantity bigint,
    reward_id text, redeemed_at timestamptz, lot_ids text[], lot_points bigint[]
);
create temporary table final_identifier (
    org_id bigint not null, type text not null, lookup text not null, value text not null, customer_id bigint not null,
    stands boolean not null
);
create temporary table default_program (org_id bigint not null, program_id text not null);
create temporary table touched_customer (org_id bigint not null, customer_id bigint not null, known boolean not null)
