// object: a restartable sequence that a thread is in nearly all the time: it is begun anew wherever the thread was taken out of it
// status: captured
#include "object.h"
#include <sys/rseq.h>
#include <sys/syscall.h>

static struct {
    uint32_t version, flags;
    uint64_t start, length, abort;
} __attribute__((aligned(32))) sequence;

// Goes through the sequence once, and says what the kernel has at its end: it forgets a sequence that it saw the thread out of, and
// must have sent the thread to the beginning then.
static uint64_t go_through(struct rseq *area) {
    uint64_t at_end;
    __asm__ volatile(
        "jmp 5f\n"
        ".long 0x53053053\n" // RSEQ_SIG
        "4: nop\n" // Here it is begun anew.
        "5: lea 1f(%%rip), %%rax\n"
        "movq %%rax, 8+%[sequence]\n"
        "lea 2f(%%rip), %%rcx\n"
        "subq %%rax, %%rcx\n"
        "movq %%rcx, 16+%[sequence]\n"
        "lea 4b(%%rip), %%rax\n"
        "movq %%rax, 24+%[sequence]\n"
        "lea %[sequence], %%rax\n"
        "movq %%rax, 8(%[area])\n"
        "1: movl $100000, %%ecx\n"
        "3: decl %%ecx\n"
        "jnz 3b\n"
        "movq 8(%[area]), %[at_end]\n"
        "2:\n"
        : [at_end] "=&r"(at_end), [sequence] "+m"(sequence)
        : [area] "r"(area)
        : "rax", "rcx", "cc", "memory");
    area->rseq_cs = 0;
    return at_end;
}

int main(void) {
    // The C library's, or one of its own where that has none.
    static struct rseq own;
    struct rseq *area = (struct rseq *)((char *)__builtin_thread_pointer() + __rseq_offset);
    if (!__rseq_size) {
        area = &own;
        CHECK(!syscall(SYS_rseq, area, sizeof *area, 0, RSEQ_SIG));
    }
    // With a timer of its own a process is asked about itself after its threads were.
    timer_t timer;
    struct sigevent silent = {.sigev_notify = SIGEV_NONE};
    struct itimerspec long_time = {.it_value.tv_sec = 100000};
    CHECK(!timer_create(CLOCK_MONOTONIC, &silent, &timer) && !timer_settime(timer, 0, &long_time, 0));
    ready();
    while (go_on())
        for (int i = 0; i < 30; i++) CHECK(go_through(area));
    PASS();
}
