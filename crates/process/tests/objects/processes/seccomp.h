// Filters of system calls, built by hand.
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <stddef.h>
#include <sys/prctl.h>
#include <sys/syscall.h>

// What `call` gets; everything else is let through. With `call` negative, an action for all that are not listed.
#define IF_CALL(call, action) \
    BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, (call), 0, 1), BPF_STMT(BPF_RET | BPF_K, (action))
#define LOAD_CALL BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr))
#define OTHERWISE(action) BPF_STMT(BPF_RET | BPF_K, (action))
#define WITH_ERROR(number) (SECCOMP_RET_ERRNO | (number))

static long filter(struct sock_filter *code, unsigned short length, unsigned flags) {
    struct sock_fprog program = {length, code};
    return syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, flags, &program);
}

#define FILTER(flags, ...) \
    ({ \
        struct sock_filter code[] = {LOAD_CALL, __VA_ARGS__}; \
        filter(code, sizeof code / sizeof *code, flags); \
    })
