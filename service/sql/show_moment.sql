-- The moment at which lots are judged expired or not.
-- $1 the frozen clock (null: none)
select coalesce($1::timestamptz, clock_timestamp())
