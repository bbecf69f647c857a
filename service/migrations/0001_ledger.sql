-- The ledger, the lanes and what waits. Points are bigint thousandths. org_id leads every key of the ledger's tables,
-- so that they can be partitioned by it or distributed. Every constraint has a name.

create table org (
    org_id           bigint  not null,
    reversal_enabled boolean not null default true,
    constraint org_pk primary key (org_id),
    constraint org_id_positive check (org_id > 0)
);

-- Rules may contradict each other here: `load` refuses such, the decision answers 899.
create table program (
    org_id                bigint   not null,
    program_id            text     not null,
    is_default            boolean  not null default false,
    live                  boolean  not null default true,
    decimals              smallint not null default 3,
    reversal_allowed      boolean  not null default true,
    allow_partial         boolean  not null default true,
    reversal_window_days  integer,
    minimum_points        bigint   not null default 0,
    max_reversals_count   integer,
    max_reversals_days    integer,
    expired_lots_policy   text     not null default 'keep',
    grace_days            integer,
    park_unknown_seconds  integer  not null default 0,
    constraint program_pk primary key (org_id, program_id),
    constraint program_org_fk foreign key (org_id) references org (org_id)
);
create unique index program_one_default on program (org_id) where is_default;

-- forgotten: refusals of this customer that were deleted after refusal_days, so that the audit can still count.
create table customer (
    org_id       bigint      not null,
    customer_id  bigint      not null,
    status       text        not null default 'active',
    locked_until timestamptz,
    sequence     bigint      not null default 0,
    forgotten    bigint      not null default 0,
    updated_at   timestamptz,
    constraint customer_pk primary key (org_id, customer_id),
    constraint customer_org_fk foreign key (org_id) references org (org_id),
    constraint customer_id_positive check (customer_id > 0),
    constraint customer_status check (status in ('active', 'inactive', 'fraud')),
    constraint customer_sequence check (sequence >= 0 and forgotten between 0 and sequence)
) with (fillfactor = 70);

create table identifier (
    org_id      bigint not null,
    type        text   not null,
    lookup      text   not null,
    value       text   not null,
    customer_id bigint not null,
    constraint identifier_pk primary key (org_id, type, lookup),
    constraint identifier_customer_fk foreign key (org_id, customer_id) references customer (org_id, customer_id),
    constraint identifier_type check (type in ('PHONE', 'EMAIL', 'EXTERNAL_ID'))
);
create index identifier_customer on identifier (org_id, customer_id);

create table reward (
    org_id         bigint not null,
    reward_id      text   not null,
    max_total      bigint,
    redeemed_count bigint not null default 0,
    status         text   not null default 'ACTIVE',
    constraint reward_pk primary key (org_id, reward_id),
    constraint reward_org_fk foreign key (org_id) references org (org_id),
    constraint reward_redeemed_count check (redeemed_count >= 0),
    constraint reward_max_total check (max_total >= 0),
    constraint reward_status check (status in ('ACTIVE', 'OUT_OF_STOCK', 'INACTIVE'))
) with (fillfactor = 70);

create table lot (
    org_id        bigint      not null,
    lot_id        text        not null,
    customer_id   bigint      not null,
    program_id    text        not null,
    points        bigint      not null,
    remaining     bigint      not null,
    expires_at    timestamptz,
    issued_at     timestamptz not null,
    restored_from text,
    constraint lot_pk primary key (org_id, lot_id),
    constraint lot_customer_fk foreign key (org_id, customer_id) references customer (org_id, customer_id),
    constraint lot_program_fk foreign key (org_id, program_id) references program (org_id, program_id),
    constraint lot_points check (points > 0),
    constraint lot_remaining check (remaining between 0 and points)
) with (fillfactor = 80);
create index lot_customer on lot (org_id, customer_id, program_id);

-- lot_ids, lot_points: what it consumed, in that order; never changed. What was restored follows from `reversed`.
-- imported_*: what `load` said had been given back before.
create table redemption (
    org_id                     bigint      not null,
    redemption_id              text        not null,
    customer_id                bigint      not null,
    program_id                 text        not null,
    order_id                   text,
    type                       text        not null,
    points                     bigint      not null,
    reversed                   bigint      not null default 0,
    imported_reversed          bigint      not null default 0,
    quantity                   bigint,
    reversed_quantity          bigint,
    imported_reversed_quantity bigint,
    reward_id                  text,
    redeemed_at                timestamptz not null,
    lot_ids                    text[]      not null default '{}',
    lot_points                 bigint[]    not null default '{}',
    constraint redemption_pk primary key (org_id, redemption_id),
    constraint redemption_customer_fk foreign key (org_id, customer_id) references customer (org_id, customer_id),
    constraint redemption_program_fk foreign key (org_id, program_id) references program (org_id, program_id),
    constraint redemption_type check (type in ('RAW', 'AMOUNT_BASED', 'UNIT_BASED')),
    constraint redemption_points check (points > 0),
    constraint redemption_reversed check (reversed between imported_reversed and points and imported_reversed >= 0),
    constraint redemption_units check ((type = 'UNIT_BASED') = (quantity is not null)
        and (quantity is null) = (reversed_quantity is null)
        and (quantity is null) = (imported_reversed_quantity is null)),
    constraint redemption_quantity check (reversed_quantity between imported_reversed_quantity and quantity
        and imported_reversed_quantity >= 0 and quantity > 0),
    constraint redemption_lots check (cardinality(lot_ids) = cardinality(lot_points))
) with (fillfactor = 70);
create index redemption_order on redemption (org_id, order_id) where order_id is not null;
create index redemption_customer on redemption (org_id, customer_id);

-- One row is one completed reversal; outcome is the JSON as it was published. outcome_id is the ce_id of the input
-- record (lane, offset, timestamp). No foreign keys on the append-only tables: each would cost a look-up and a tuple
-- lock per row in the hot path; the audit checks the same.
create table reversal (
    org_id           bigint      not null,
    reversal_id      uuid        not null,
    idempotency_key  text        not null,
    customer_id      bigint      not null,
    program_id       text        not null,
    redemption_id    text        not null,
    journal_entry_id uuid        not null,
    points           bigint      not null,
    available        bigint      not null,
    expired          bigint      not null,
    quantity         bigint,
    sequence         bigint      not null,
    created_at       timestamptz not null,
    lane_id          integer     not null,
    record_offset    bigint      not null,
    outcome_id       uuid        not null,
    fingerprint      bytea       not null,
    outcome          text        not null,
    constraint reversal_pk primary key (org_id, reversal_id),
    constraint reversal_key unique (org_id, idempotency_key),
    constraint reversal_points check (points >= 0 and available >= 0 and expired >= 0 and available + expired = points)
);
create index reversal_customer on reversal (org_id, customer_id, program_id, created_at);
create index reversal_record on reversal (lane_id, record_offset);

-- One row is one journal entry with its postings as arrays; the view posting shows them as rows.
create table journal (
    org_id        bigint      not null,
    entry_id      uuid        not null,
    kind          text        not null,
    created_at    timestamptz not null,
    customer_id   bigint      not null,
    redemption_id text,
    accounts      text[]      not null,
    subjects      text[]      not null,
    points        bigint[]    not null,
    constraint journal_pk primary key (org_id, entry_id),
    constraint journal_kind check (kind in ('issue', 'redemption', 'reversal', 'import'))
);
create view posting as
    select j.org_id, j.entry_id, j.kind, j.created_at, j.customer_id, j.redemption_id,
           p.position, p.account, p.subject, p.points
    from journal j
    cross join lateral unnest(j.accounts, j.subjects, j.points) with ordinality as p (account, subject, points, position);

-- One row is one reversal-failed that was published (804 too), kept refusal_days. outcome is the JSON as published,
-- less `existing`.
create table refusal (
    org_id          bigint      not null,
    lane_id         integer     not null,
    record_offset   bigint      not null,
    outcome_id      uuid        not null,
    idempotency_key text        not null,
    code            integer     not null,
    name            text        not null,
    message         text        not null,
    customer_id     bigint,
    sequence        bigint,
    redemption_id   text,
    order_id        text,
    failed_at       timestamptz not null,
    outcome         text        not null,
    constraint refusal_pk primary key (org_id, lane_id, record_offset, outcome_id)
);
create index refusal_customer on refusal (org_id, customer_id) where customer_id is not null;
create index refusal_redemption on refusal (org_id, redemption_id) where redemption_id is not null;
create index refusal_order on refusal (org_id, order_id) where order_id is not null;
create index refusal_failed_at on refusal (failed_at);

-- A lane is an input partition (topic: the name of the topic as it is on Kafka). The epoch fences: only the owner of
-- the current epoch moves next_offset. high_offset is the greatest next_offset ever: below it, records may be repeats.
-- The counts are of this lane's records, by whichever lane decided them at once; see lane_settled for the others.
create table lane (
    lane_id        integer     not null generated always as identity,
    topic          text        not null,
    partition      integer     not null,
    epoch          bigint      not null default 0,
    owner          text,
    next_offset    bigint      not null default 0,
    high_offset    bigint      not null default 0,
    last_offset    bigint,
    last_timestamp_ms bigint,
    taken          bigint      not null default 0,
    completed      bigint      not null default 0,
    failed         bigint      not null default 0,
    booked         bigint      not null default 0,
    unchanged      bigint      not null default 0,
    repeated       bigint      not null default 0,
    dead           bigint      not null default 0,
    updated_at     timestamptz not null default now(),
    constraint lane_pk primary key (lane_id),
    constraint lane_partition unique (topic, partition),
    constraint lane_offsets check (next_offset >= 0 and high_offset >= next_offset)
) with (fillfactor = 50);

-- What became of a lane's waiting records, counted by the lane that decided them (no two lanes write one row).
create table lane_settled (
    lane_id    integer not null,
    by_lane_id integer not null,
    completed  bigint  not null default 0,
    failed     bigint  not null default 0,
    booked     bigint  not null default 0,
    unchanged  bigint  not null default 0,
    dead       bigint  not null default 0,
    constraint lane_settled_pk primary key (lane_id, by_lane_id)
);

-- Records that wait: returns for their redemption, feed records for what they need. Bytes and headers untouched.
create table waiting (
    lane_id       integer     not null,
    record_offset bigint      not null,
    timestamp_ms  bigint      not null,
    kind          text        not null,
    org_id        bigint      not null,
    customer_id   bigint,
    redemption_id text,
    order_id      text,
    waits_for     text        not null,
    parked_at     timestamptz not null,
    deadline      timestamptz not null,
    record_key    bytea,
    value         bytea,
    headers       text        not null,
    constraint waiting_pk primary key (lane_id, record_offset, timestamp_ms)
);
create index waiting_customer on waiting (org_id, customer_id) where customer_id is not null;
create index waiting_redemption on waiting (org_id, redemption_id) where redemption_id is not null;
create index waiting_order on waiting (org_id, order_id) where order_id is not null;
create index waiting_deadline on waiting (lane_id, deadline);

-- What was decided and may not be on Kafka yet; rows leave once acknowledged. The names fit Debezium's outbox router.
-- headers: see service/headers.py.
create table outbox (
    lane_id       integer     not null,
    position      bigint      not null,
    id            uuid        not null,
    aggregatetype text        not null,
    aggregateid   text        not null,
    type          text        not null,
    topic         text        not null,
    record_key    bytea,
    payload       bytea,
    headers       text        not null,
    created_at    timestamptz not null,
    constraint outbox_pk primary key (lane_id, position)
) with (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 10000,
        autovacuum_vacuum_insert_scale_factor = 0, autovacuum_vacuum_insert_threshold = 100000);

create function refuse_change() returns trigger language plpgsql as $$
begin
    raise exception 'table % is append-only: % refused', tg_table_name, lower(tg_op)
        using errcode = 'restrict_violation';
end $$;

create trigger reversal_append_only before update or delete or truncate on reversal
    for each statement execute function refuse_change();
create trigger journal_append_only before update or delete or truncate on journal
    for each statement execute function refuse_change();
create trigger refusal_append_only before update or truncate on refusal
    for each statement execute function refuse_change();
