// object: processes waiting to receive from an empty System V message queue, and to send to a full one
// status: captured
// note:
#include "object.h"

#include <sys/ipc.h>
#include <sys/msg.h>

static struct message { long type; unsigned value; char rest[2000]; } message;

int main(void) {
    int ask = msgget(IPC_PRIVATE, 0600), answer = msgget(IPC_PRIVATE, 0600), full = msgget(IPC_PRIVATE, 0600);
    struct msqid_ds about;
    CHECK(msgctl(full, IPC_STAT, &about) == 0);
    about.msg_qbytes = 4096;
    CHECK(msgctl(full, IPC_SET, &about) == 0);
    const size_t size = sizeof message - sizeof message.type;
    if (fork() == 0) {
        for (;;) {
            while (msgrcv(ask, &message, size, 0, 0) < 0) CHECK_EQUAL(errno, EINTR);
            message.value++;
            while (msgsnd(answer, &message, 4, 0)) CHECK_EQUAL(errno, EINTR);
        }
    }
    if (fork() == 0) {
        for (message = (struct message){1}; ; message.value++)
            while (msgsnd(full, &message, size, 0)) CHECK_EQUAL(errno, EINTR);
    }
    unsigned count = 0, read = 0;
    ready();
    do {
        message.type = 7, message.value = count;
        CHECK(msgsnd(ask, &message, 4, 0) == 0);
        CHECK_EQUAL(msgrcv(answer, &message, size, 7, 0), 4);
        CHECK_EQUAL(message.value, ++count);
        CHECK_EQUAL(msgrcv(full, &message, size, 0, 0), size);
        CHECK_EQUAL(message.value, read++);
    } while (go_on());
    CHECK(msgctl(full, IPC_STAT, &about) == 0);
    CHECK_EQUAL(about.msg_qbytes, 4096);
    PASS();
}
