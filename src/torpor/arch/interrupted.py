# SPDX-License-Identifier: Apache-2.0
"""Threads that were dumped inside a system call which a signal may end: putting them into it again.

In an image such a call is about to be made.  If a signal with a handler waits for the restored thread, its handler
runs, and then the call begins, perhaps never to end: `alarm(5); read(...)`.  signal(7) wants it to fail with EINTR, or
to be made again where the handler has SA_RESTART and the call allows it.  The kernel decides that when a thread leaves
a stop, by what it finds in the registers: so it is shown there what an interrupted call leaves, and decides itself.

How a call was interrupted, one of the kernel's ERESTART numbers, Torpor's images say where registers show it
(`Arch.interruption`).  Elsewhere, on aarch64, armv7 and in images of CRIU's, a thread that is about to make a call that
can be interrupted is taken for one that was inside it.  At worst the signal came a moment before the call, and the call
fails with EINTR for it, as if it had come a moment later.

In images of CRIU's some calls have failed with EINTR though no signal was there, by CRIU's own stop: those that any
stop ends (`Arch.ends_by_a_stop`; signal(7) has the list, with sockets that have a time limit), and those that the
kernel would continue by restart_syscall (poll, FUTEX_WAIT_BITSET).  Programs that catch no signals do not expect that.
They are made again (`Arch.ended_call`) if the image still has their arguments, as on x86_64 and ppc64le.  On aarch64
and s390x EINTR has taken the first argument's place, and CRIU saves that nowhere else: there such calls stay ended,
after a restore by CRIU as by Torpor.  (On aarch64 none of them is poll: that is ppoll there, which is always
restarted.)

On ppc64le such a call looks like one that a handler has ended, in a thread that was caught between rt_sigreturn and
its next instruction.  That is made again, too, as if its signal had come just before the call, where it would have been
missed as well.  Calls that let signals in themselves, so that none can come before, are not, unless one waits that they
can still let in: epoll_pwait with a mask (a stop ends neither ppoll nor pselect).  On x86_64 nothing is mistaken:
orig_rax is -1 after rt_sigreturn.
"""

from torpor.arch.base import ERESTARTNOHAND, ERESTARTSYS, Arch, Call

# What a handler ends even with SA_RESTART (signal(7); ERESTARTNOHAND, ERESTART_RESTARTBLOCK and EINTR in the kernel).
_ENDED = """
pause sigsuspend rt_sigsuspend select _newselect pselect6 pselect6_time64 poll ppoll ppoll_time64 epoll_wait epoll_pwait
epoll_pwait2 msgrcv msgsnd semop semtimedop semtimedop_time64 rt_sigtimedwait rt_sigtimedwait_time64 nanosleep
clock_nanosleep clock_nanosleep_time64 io_getevents io_pgetevents io_pgetevents_time64
""".split()  # noqa: SIM905
# What is made again then.  On 32-bit ARM each is first made with arguments that it refuses (Arm.before_call).
_REPEATED = """
read readv write writev recv recvfrom recvmsg recvmmsg recvmmsg_time64 send sendto sendmsg sendmmsg accept accept4
connect socketcall open openat openat2 creat wait4 waitid waitpid flock fcntl fcntl64 ioctl mq_timedsend mq_timedreceive
mq_timedsend_time64 mq_timedreceive_time64 splice tee vmsplice
""".split()  # noqa: SIM905
_FUTEXES = ("futex", "futex_time64")
_FUTEX_COMMAND, _FUTEX_WAITS = 0x7F, (0, 9)  # FUTEX_WAIT, FUTEX_WAIT_BITSET
_SYSV_WAITS = (1, 4, 11, 12)  # of ipc(2): SEMOP, SEMTIMEDOP, MSGSND, MSGRCV


def how(arch: Arch, call: Call) -> int:
    """The ERESTART number with which a signal interrupts the call; 0: with none."""
    names = arch.SYSCALLS
    if call.nr in (names[name] for name in _FUTEXES if name in names):
        if call.args[1] & _FUTEX_COMMAND not in _FUTEX_WAITS:
            return 0
        return ERESTARTNOHAND if call.args[3] else ERESTARTSYS
    if call.nr == names.get("ipc"):
        return ERESTARTNOHAND if call.args[0] & 0xFFFF in _SYSV_WAITS else 0
    if call.nr in arch.numbers_of(_ENDED):
        return ERESTARTNOHAND
    return ERESTARTSYS if call.nr in arch.numbers_of(_REPEATED) else 0
