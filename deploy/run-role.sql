-- The role of the services that decide. `migrate --grant reversal_run` gives it what it needs, and nothing more.
-- Run by the image of Postgres, once, when it makes the database.
\getenv password RUN_PASSWORD
create role reversal_run login password :'password';
