// object: a System V message queue with messages of several types and lengths, empty ones among them
// status: captured
// note: who sent and received last, and when, is not kept
#include "object.h"

#include <sys/ipc.h>
#include <sys/msg.h>

static struct { long type; char bytes[1000]; } message;

static int length_of(unsigned number) { return number % 5 == 0 ? 0 : 4 + number % 500; }

int main(void) {
    for (int i = 0; i < 3; i++) CHECK(msgctl(msgget(IPC_PRIVATE, 0600), IPC_RMID, 0) == 0);
    int queue = msgget(0xfeed, IPC_CREAT | IPC_EXCL | 0620);
    CHECK(queue >= 0);
    unsigned sent[3] = {0}, got[3] = {0}, round = 0;
    do {
        for (int type = 1; type <= 3; type++) {
            while (sent[type - 1] - got[type - 1] < 8) {
                unsigned number = sent[type - 1]++;
                message.type = type;
                memset(message.bytes, number, sizeof message.bytes);
                memcpy(message.bytes, &number, 4);
                CHECK(msgsnd(queue, &message, length_of(number), IPC_NOWAIT) == 0);
            }
        }
        if (round++ == 0) ready();
        // Out of the middle, by type.
        for (int i = 0; i < 4; i++) {
            int type = 1 + (round + i) % 3;
            ssize_t length = msgrcv(queue, &message, sizeof message.bytes, type, IPC_NOWAIT);
            CHECK_EQUAL(message.type, type);
            CHECK_EQUAL(length, length_of(got[type - 1]));
            if (length) CHECK_EQUAL(*(unsigned *)message.bytes, got[type - 1]);
            if (length > 4) CHECK_EQUAL(message.bytes[length - 1], (char)got[type - 1]);
            got[type - 1]++;
        }
    } while (go_on());
    struct msqid_ds about;
    CHECK(msgctl(queue, IPC_STAT, &about) == 0);
    CHECK_EQUAL(about.msg_qnum, sent[0] + sent[1] + sent[2] - got[0] - got[1] - got[2]);
    CHECK_EQUAL(about.msg_perm.mode & 0777, 0620);
    CHECK_EQUAL(msgget(0xfeed, 0), queue);
    PASS();
}
