"""Every setting, with its unit and its reason. They come from the environment: REVERSAL_BATCH_RECORDS,
REVERSAL_KAFKA__BOOTSTRAP_SERVERS and so on."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal, NamedTuple

from pydantic import AwareDatetime, BaseModel, Field, SecretStr, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from service.records import Kind


class Kafka(BaseModel):
    """How to reach Kafka and how to behave in the consumer group."""

    bootstrap_servers: str = Field("localhost:9092", description="brokers to begin with, host:port, comma-separated")
    group_id: str = Field("points-reversal", description="consumer group; all processes of one service share it")
    group_instance_id: str | None = Field(
        None,
        description="static membership: a name of this process that stays over restarts, so that it gets its "
        "partitions back at once; must differ between processes: of two with one name the earlier ends",
    )
    security_protocol: Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"] = Field(
        "PLAINTEXT", description="as the brokers' listener asks"
    )
    sasl_mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"] = Field(
        "SCRAM-SHA-512", description="used with SASL_*; the strongest that brokers offer by default"
    )
    sasl_username: str | None = Field(None, description="used with SASL_*")
    sasl_password: SecretStr | None = Field(None, description="used with SASL_*")
    ssl_ca_file: str | None = Field(None, description="PEM of the brokers' CA; the system's CAs when omitted")
    ssl_certificate_file: str | None = Field(
        None, description="PEM of this client's certificate, where the brokers ask for one"
    )
    ssl_key_file: str | None = Field(None, description="PEM of its key; omitted: in the file of the certificate")
    ssl_key_password: SecretStr | None = Field(None, description="of the key, where it is encrypted")
    session_timeout_ms: int = Field(
        10_000,
        ge=1_000,
        description="a process silent for so long loses its partitions; "
        "short, since a killed one stops its lanes for that time",
    )
    heartbeat_interval_ms: int = Field(1_000, ge=100, description="a rebalance is noticed after at most so long")
    rebalance_timeout_ms: int = Field(
        30_000,
        ge=1_000,
        description="above the longest batch, which is finished before partitions are given up",
    )
    fetch_max_wait_ms: int = Field(
        50,
        ge=1,
        description="an idle partition's long poll can hold a drained one on the "
        "same broker for so long; 50 keeps the latency down",
    )
    request_timeout_ms: int = Field(
        15_000, ge=1_000, description="a request to a broker unanswered for so long is failed"
    )
    linger_ms: int = Field(2, ge=0, description="outcomes gather for so long before they are sent")

    @model_validator(mode="after")
    def _complete(self) -> Kafka:
        if self.security_protocol.startswith("SASL") and not (self.sasl_username and self.sasl_password):
            raise ValueError(
                f"{self.security_protocol} needs REVERSAL_KAFKA__SASL_USERNAME and REVERSAL_KAFKA__SASL_PASSWORD"
            )
        return self


class Topics(BaseModel):
    """Names of topics on Kafka. The defaults are also the types of the events."""

    order_returned: str = Field("order.returned", description="returns, in")
    customer_updated: str = Field("customer.updated", description="customers and their identifiers, in")
    points_issued: str = Field("points.issued", description="lots, in")
    points_redeemed: str = Field("points.redeemed", description="redemptions, in")
    reversal_completed: str = Field("reversal-completed", description="points given back, out")
    reversal_failed: str = Field("reversal-failed", description="returns refused, out")
    dead_letter_suffix: str = Field(
        ".dlq", min_length=1, description="an input topic's dead letters: its name and this"
    )
    partitions: int = Field(
        4,
        ge=1,
        description="partitions of a topic that `topics` creates; bounds the processes that can share it",
    )
    replication_factor: int = Field(
        -1, description="replicas of a topic that `topics` creates; -1: the broker's default"
    )

    @model_validator(mode="after")
    def _differ(self) -> Topics:
        names = [*self.inputs(), self.reversal_completed, self.reversal_failed]
        names += [self.dead_letters(name) for name in self.inputs()]
        if len(set(names)) < len(Kind) * 2 + 2:
            raise ValueError("two topics have the same name; each input, output and dead-letter topic needs its own")
        return self

    def inputs(self) -> dict[str, Kind]:
        """The input topics' names with what they carry."""
        return {
            self.order_returned: Kind.ORDER_RETURNED,
            self.customer_updated: Kind.CUSTOMER_UPDATED,
            self.points_issued: Kind.POINTS_ISSUED,
            self.points_redeemed: Kind.POINTS_REDEEMED,
        }

    def dead_letters(self, topic: str) -> str:
        """The name of an input topic's dead letters."""
        return topic + self.dead_letter_suffix


class Settings(BaseSettings):
    """All settings of the service."""

    model_config = SettingsConfigDict(env_prefix="REVERSAL_", env_nested_delimiter="__", extra="ignore")

    database_url: SecretStr = Field(
        SecretStr("postgresql://localhost/points_reversal"),
        description="Postgres 15 or later: postgresql://user:password@host:port/database",
    )
    database_connections: int = Field(
        6,
        ge=2,
        le=100,
        description="most connections of one process; lanes take turns, more only helps where Postgres has idle cores",
    )
    statement_timeout_ms: int = Field(30_000, ge=100, description="a statement longer than this is ended by Postgres")
    lock_timeout_ms: int = Field(10_000, ge=100, description="waiting for a row longer than this ends the statement")
    idle_in_transaction_timeout_ms: int = Field(
        5_000,
        ge=100,
        description="a frozen process must not hold a customer: Postgres ends its transaction after so long",
    )
    tcp_user_timeout_ms: int = Field(
        10_000, ge=0, description="a connection whose bytes stay unacknowledged so long is dead"
    )

    kafka: Kafka = Kafka()
    topics: Topics = Topics()

    batch_records: int = Field(
        500,
        ge=1,
        le=10_000,
        description="most records of one transaction; more adds latency, hardly any speed",
    )
    batch_bytes: int = Field(8 * 1024 * 1024, ge=1, description="most bytes of input in one transaction; bounds memory")
    max_record_bytes: int = Field(
        1024 * 1024,
        ge=1,
        le=16 * 1024 * 1024,
        description="a larger record goes to the dead letters as too_large",
    )
    publish_deadline_seconds: float = Field(
        30,
        gt=0,
        description="outcomes unacknowledged for so long are published again from the outbox by a new producer",
    )
    outbox_linger_ms: int = Field(
        100,
        ge=1,
        description="acknowledged outbox rows leave with the next batch, or by themselves after so long without one",
    )
    drain_seconds: float = Field(20, gt=0, description="SIGTERM: the batches under way may take so long")
    feed_wait_seconds: float = Field(
        300, ge=0, le=31_536_000, description="a feed record that cannot be booked yet waits for so long"
    )
    release_records: int = Field(100, ge=1, description="most waiting records that one transaction takes up again")
    refusal_days: int = Field(
        90, ge=1, le=36_500, description="refusals are kept so long for `show`; reversals are kept for good"
    )

    http_host: str = Field("127.0.0.1", description="where /livez, /readyz and /metrics listen; 0.0.0.0 in a container")
    http_port: int = Field(8080, ge=0, le=65535, description="their port; 0: off")
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="least level that is logged")
    log_format: Literal["auto", "json", "console"] = Field("auto", description="auto: JSON unless on a terminal")
    test_clock: AwareDatetime | None = Field(None, description="freezes the decision moment; for tests only")
    test_failpoint: str | None = Field(
        None,
        description="kills or freezes the process at a named point, NAME:COUNT; for tests only (service/failpoint.py)",
    )


class Described(NamedTuple):
    """One setting as it is listed: its variable, its value as text (secrets masked), its default, and its reason."""

    name: str
    value: str
    default: str
    reason: str


def described(settings: BaseModel, prefix: str = "REVERSAL_") -> Iterator[Described]:
    """Every setting, in the order in which they stand here."""
    for name, field in type(settings).model_fields.items():
        value = getattr(settings, name)
        if isinstance(value, BaseModel):
            yield from described(value, f"{prefix}{name.upper()}__")
        else:
            default = field.get_default(call_default_factory=True)
            yield Described(prefix + name.upper(), _shown(value), _shown(default), field.description or "")


def _shown(value: Any) -> str:
    return "" if value is None else str(value)
