"""The errors that services raise, grouped by the gRPC code that they travel as."""

from __future__ import annotations

from grpc import StatusCode

from rookery.errors import RookeryError

# --- the caller asked for something that cannot be -------------------------------------------------------------------


class InvalidField(RookeryError):
    """A field of the request is missing, out of its range or malformed; `field` names it."""

    code = StatusCode.INVALID_ARGUMENT
    reason = "INVALID_FIELD"


class NotStorable(RookeryError):
    """The database has no place for a value of the request: a number too large, a name too long, a NUL character."""

    code = StatusCode.INVALID_ARGUMENT
    reason = "NOT_STORABLE"


class EmptyPassage(RookeryError):
    """A context without a passage; `field` names it."""

    code = StatusCode.INVALID_ARGUMENT
    reason = "EMPTY_PASSAGE"


class PassageTooLong(RookeryError):
    """A passage over the student profile's limit; `field` names it."""

    code = StatusCode.INVALID_ARGUMENT
    reason = "PASSAGE_TOO_LONG"


class RankNotServed(RookeryError):
    """An adapter of this rank could be trained but not loaded by the profile's engine."""

    code = StatusCode.INVALID_ARGUMENT
    reason = "RANK_NOT_SERVED"


class UnknownResource(RookeryError):
    """There is nothing of this name; `name` repeats it."""

    code = StatusCode.NOT_FOUND
    reason = "UNKNOWN_RESOURCE"


class UnknownProfile(RookeryError):
    """There is no profile of this name in this role; `name` repeats it."""

    code = StatusCode.NOT_FOUND
    reason = "UNKNOWN_PROFILE"


class NameTaken(RookeryError):
    """Another resource has this name."""

    code = StatusCode.ALREADY_EXISTS
    reason = "NAME_TAKEN"


# --- the state of the system does not allow it -----------------------------------------------------------------------


class StaleEpoch(RookeryError):
    """The job has another owner now, or has ended. Stop: nothing written under this epoch counts."""

    code = StatusCode.FAILED_PRECONDITION
    reason = "STALE_EPOCH"


class JobNotQueued(RookeryError):
    """The job runs or has ended: the message that announced it was a duplicate. Drop it."""

    code = StatusCode.FAILED_PRECONDITION
    reason = "JOB_NOT_QUEUED"


class GainNotSignificant(RookeryError):
    """The adapter's gain is not positive beyond its uncertainty, so it may not become `live`."""

    code = StatusCode.FAILED_PRECONDITION
    reason = "GAIN_NOT_SIGNIFICANT"


class AliasMoved(RookeryError):
    """The alias does not point where the caller expected. Look again, then decide again."""

    code = StatusCode.FAILED_PRECONDITION
    reason = "ALIAS_MOVED"


class NothingToRollBack(RookeryError):
    """The alias has never pointed anywhere else."""

    code = StatusCode.FAILED_PRECONDITION
    reason = "NOTHING_TO_ROLL_BACK"


# --- work that went wrong --------------------------------------------------------------------------------------------


class ModelNotLoadable(RookeryError):
    """The profile's model could not be loaded from its source."""

    code = StatusCode.FAILED_PRECONDITION
    reason = "MODEL_NOT_LOADABLE"


class NoDevice(RookeryError):
    """The process cannot use the device that it was told to."""

    code = StatusCode.UNAVAILABLE
    reason = "NO_DEVICE"


class StoreUnavailable(RookeryError):
    """The object store was not reached, or had errors of its own."""

    code = StatusCode.UNAVAILABLE
    reason = "STORE_UNAVAILABLE"


class ObjectMissing(RookeryError):
    """The object store has nothing under this key."""

    code = StatusCode.NOT_FOUND
    reason = "OBJECT_MISSING"


class DatabaseUnavailable(RookeryError):
    """The database cannot be reached, or takes too long. Whether the call has had its effect is unknown: repeat it."""

    code = StatusCode.UNAVAILABLE
    reason = "DATABASE_UNAVAILABLE"
    retry_seconds = 0.5


class MigrationBlocked(RookeryError):
    """Somebody holds a table that a migration changes. Nothing has been changed; migrate again."""

    code = StatusCode.ABORTED
    reason = "MIGRATION_BLOCKED"


class StoreUnusable(RookeryError):
    """The object store cannot do something that the service needs; the message says what."""

    code = StatusCode.FAILED_PRECONDITION
    reason = "STORE_UNUSABLE"


class NoLinks(RookeryError):
    """The object store is a folder, which nobody can fetch from by a link. Download through the service."""

    code = StatusCode.FAILED_PRECONDITION
    reason = "NO_LINKS"


class AdapterCorrupt(RookeryError):
    """Stored bytes do not match the digests that the adapter is named by."""

    code = StatusCode.DATA_LOSS
    reason = "ADAPTER_CORRUPT"


class AdapterRefused(RookeryError):
    """The adapter's files are not those of a plain LoRA adapter in safetensors. No loader has seen them."""

    code = StatusCode.FAILED_PRECONDITION
    reason = "ADAPTER_REFUSED"


class AdapterMismatch(RookeryError):
    """The adapter was trained for another base model than the one loaded."""

    code = StatusCode.FAILED_PRECONDITION
    reason = "ADAPTER_MISMATCH"


class AdapterIgnored(RookeryError):
    """The engine answers exactly as it does without the adapter, which is not an empty one: it is not in use."""

    code = StatusCode.FAILED_PRECONDITION
    reason = "ADAPTER_IGNORED"


class PromptTooLong(RookeryError):
    """A prompt has more tokens than the model can read."""

    code = StatusCode.INVALID_ARGUMENT
    reason = "PROMPT_TOO_LONG"


class EngineCannot(RookeryError):
    """The profile's engine cannot do this, whatever the model: nothing behind the engine `openai` can be trained."""

    code = StatusCode.FAILED_PRECONDITION
    reason = "ENGINE_CANNOT"


class RemoteRefused(RookeryError):
    """The endpoint will not answer, however often it is asked: a wrong key, an unknown model, a withheld text."""

    code = StatusCode.FAILED_PRECONDITION
    reason = "REMOTE_REFUSED"


class RemoteLimited(RookeryError):
    """The endpoint's rate limit or quota lasted longer than all attempts."""

    code = StatusCode.RESOURCE_EXHAUSTED
    reason = "REMOTE_LIMITED"


class RemoteUnavailable(RookeryError):
    """The endpoint was not reached, did not answer in time or had errors of its own, at every attempt.

    Not UNAVAILABLE, which channels repeat by themselves: the endpoint was asked often enough for one call.
    """

    code = StatusCode.ABORTED
    reason = "REMOTE_UNAVAILABLE"


class RemoteMalformed(RookeryError):
    """The endpoint's reply is not in OpenAI's format, or does not say what it cost: it is not one of its kind."""

    code = StatusCode.FAILED_PRECONDITION
    reason = "REMOTE_MALFORMED"


class GradeNotANumber(RookeryError):
    """A likelihood is infinite or not a number: the model does not compute as it should."""

    code = StatusCode.FAILED_PRECONDITION
    reason = "GRADE_NOT_A_NUMBER"


class NoJudge(RookeryError):
    """The judge's grade is asked for, and the evaluator is told of no judge."""

    code = StatusCode.FAILED_PRECONDITION
    reason = "NO_JUDGE"


class JudgeFailed(RookeryError):
    """The judge gave no clear yes or no for an answer, at any attempt. The answer is not graded."""

    code = StatusCode.FAILED_PRECONDITION
    reason = "JUDGE_FAILED"


class TrainingFailed(RookeryError):
    """An adapter could not be trained, and would not be at another attempt; the message says why."""

    code = StatusCode.FAILED_PRECONDITION
    reason = "TRAINING_FAILED"


class OtherRules(RookeryError):
    """The worker makes other examples of a context than the coordinator takes them for: one is of another release.

    Whoever runs both is in the middle of a change, so another attempt may succeed.
    """

    code = StatusCode.ABORTED
    reason = "OTHER_RULES"


class UnusableSelfEdits(RookeryError):
    """The teacher wrote nothing that an adaptation could be trained on."""

    code = StatusCode.FAILED_PRECONDITION
    reason = "UNUSABLE_SELF_EDITS"


class NoQuestions(RookeryError):
    """The context came without questions and the teacher wrote none that can be read."""

    code = StatusCode.FAILED_PRECONDITION
    reason = "NO_QUESTIONS"


class EngineDead(RookeryError):
    """The process that holds the engine's model has ended. The service ends too, to be started again."""

    code = StatusCode.UNAVAILABLE
    reason = "ENGINE_DEAD"


class AddressTaken(RookeryError):
    """A server cannot listen where it was told to: most likely another one does."""

    code = StatusCode.FAILED_PRECONDITION
    reason = "ADDRESS_TAKEN"


class NoCertificate(RookeryError):
    """A server is to speak TLS and has no certificate that it could show."""

    code = StatusCode.FAILED_PRECONDITION
    reason = "NO_CERTIFICATE"


class Overloaded(RookeryError):
    """The server has as many calls in flight as it takes. Nothing was done; try again when it says."""

    code = StatusCode.RESOURCE_EXHAUSTED
    reason = "OVERLOADED"
    retry_seconds = 0.5


class DeadlineExceeded(RookeryError):
    """The call took longer than its caller, or the method where the caller said nothing, gives it."""

    code = StatusCode.DEADLINE_EXCEEDED
    reason = "DEADLINE_EXCEEDED"


class ShuttingDown(RookeryError):
    """The server stops and has ended the call. Take it up with another one."""

    code = StatusCode.UNAVAILABLE
    reason = "SHUTTING_DOWN"


class Cancelled(RookeryError):
    """Somebody cancelled the work."""

    code = StatusCode.CANCELLED
    reason = "CANCELLED"


class Preempted(RookeryError):
    """The job makes way, through no fault of its own: it is given back, and goes on elsewhere."""

    code = StatusCode.ABORTED
    reason = "PREEMPTED"


class TrainerDied(RookeryError):
    """The process that the job ran in died: of the job, of what ran beside it, or of the machine's needs."""

    code = StatusCode.ABORTED
    reason = "TRAINER_DIED"


class TrainerNotStarted(RookeryError):
    """The process that runs jobs ended before it could take one. No job is at fault; its log says what is."""

    code = StatusCode.UNAVAILABLE
    reason = "TRAINER_NOT_STARTED"
